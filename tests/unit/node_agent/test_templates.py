"""Which templates a node has: what a crash or a removal has left of one is none, and is built again."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any, cast

import pytest

from node_agent.templates import COMPLETE_FILE, UNUSED_SECONDS, Templates
from node_agent.vmm import Image, MachineSpec
from sandpool.node.v1 import node_pb2 as pb
from sandpool.v1 import pool_pb2

MACHINE = MachineSpec(1, 1 << 20, 1 << 20)
SOURCE = pool_pb2.TemplateSource(builtin="python")


class Images:
    """Has every image."""

    async def image(self, name: str, *_: object) -> Image:
        return Image(*[Path("/nowhere")] * 4, image_id=name)


class Freezer:
    """A hypervisor whose templates are a file."""

    name = "freezer"

    async def fingerprint(self) -> str:
        return "cold"

    async def build(self, image: Image, machine: MachineSpec, directory: Path, _: object) -> None:
        (directory / "memory").write_text("all of it")


def make(cache: Path) -> Templates:
    return Templates(cache, cast("Any", Freezer()), Images(), cast("Any", None))


async def build(templates: Templates) -> pb.Template:
    return await templates.build(SOURCE, MACHINE, lambda *_: None)


@pytest.mark.parametrize("left", ["", "0", "\0" * 20, "0a05"])
async def test_a_damaged_template_is_none_and_is_built_again(tmp_path: Path, left: str) -> None:
    template = await build(make(tmp_path))
    found = make(tmp_path).find(template.template_id)
    assert found is not None and found[1] == template
    (found[0] / COMPLETE_FILE).write_text(left)
    assert make(tmp_path).find(template.template_id) is None and make(tmp_path).list() == []
    assert await build(make(tmp_path)) == template
    assert make(tmp_path).list() == [template]


async def test_a_template_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    await build(make(tmp_path))
    assert all("/.build-" in str(path) for path in synced)
    assert sorted(path.relative_to(tmp_path).parts[2:] for path in synced) == [
        ("template",),
        ("template", "memory"),
        ("template", COMPLETE_FILE),
    ]


async def test_what_is_half_removed_or_unused_is_removed_at_the_start(tmp_path: Path) -> None:
    templates = make(tmp_path)
    template_id = (await build(templates)).template_id
    directory, half = tmp_path / "templates" / template_id, tmp_path / "templates" / "abcd"
    half.mkdir()
    (half / "memory").touch()
    templates.remove_unused()
    assert directory.is_dir() and not half.exists()
    long_ago = time.time() - UNUSED_SECONDS - 1
    os.utime(directory / COMPLETE_FILE, (long_ago, long_ago))
    templates.remove_unused()
    assert not directory.exists()


async def test_what_another_agent_builds_is_left_alone(tmp_path: Path) -> None:
    templates = make(tmp_path)
    half = tmp_path / "templates" / "abcd"
    half.mkdir()
    with (tmp_path / "templates" / "abcd.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        templates.remove_unused()
    assert half.exists()
