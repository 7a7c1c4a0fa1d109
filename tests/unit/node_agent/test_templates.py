"""Which templates a node has: what a crash or a removal has left of one is none, and is built again."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from node_agent.service import NodeAgentService
from node_agent.templates import COMPLETE_FILE, UNUSED_SECONDS, Templates
from node_agent.vmm import Image, MachineSpec
from sandpool.node.v1 import node_pb2
from sandpool.v1 import pool_pb2
from service_kit.errors import Internal

MACHINE = MachineSpec(1, 1 << 20, 1 << 20)
SOURCE = pool_pb2.TemplateSource(builtin="python")


class Images:
    """Has every image."""

    async def image(self, name: str, *_: object) -> Image:
        return Image(*[Path("/nowhere")] * 4, image_id=name)


class Freezer:
    """A hypervisor whose templates are a file."""

    name = "freezer"
    missing = ""

    async def fingerprint(self) -> str:
        if self.missing:
            raise FileNotFoundError(self.missing)
        return "cold"

    async def build(self, image: Image, machine: MachineSpec, directory: Path, _: object) -> None:
        (directory / "memory").write_text("all of it")


def make(cache: Path, vmm: Freezer | None = None) -> Templates:
    return Templates(cache, cast("Any", vmm or Freezer()), Images(), cast("Any", None))


async def build(templates: Templates) -> node_pb2.Template:
    return await templates.build(SOURCE, MACHINE, lambda *_: None)


def complete(text: str) -> Callable[[Path], object]:
    """What a crash of the host may have left of that file."""
    return lambda directory: (directory / COMPLETE_FILE).write_text(text)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no memory": lambda directory: (directory / "memory").unlink(),
    "half a memory": lambda directory: os.truncate(directory / "memory", 4),
    "empty": complete(""),
    "zeros": complete("\0" * 20),
    "half": lambda directory: os.truncate(directory / COMPLETE_FILE, 20),
    "of an older agent": complete("0a05"),
    "a number": complete("0"),
    "no template": complete('{"sizes": {}}'),
    "half a template": complete('{"template": "0a05", "sizes": {}}'),
    "another template": complete('{"template": "", "sizes": {}}'),
    "no sizes": complete('{"template": "", "sizes": []}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_template_is_none_and_is_built_again(tmp_path: Path, damage: str) -> None:
    template = await build(make(tmp_path))
    found = make(tmp_path).find(template.template_id)
    assert found is not None and found[1] == template
    DAMAGES[damage](found[0])
    assert make(tmp_path).find(template.template_id) is None and make(tmp_path).list() == []
    assert await build(make(tmp_path)) == template
    assert make(tmp_path).list() == [template]


async def test_a_build_that_this_host_cannot_do_says_why(tmp_path: Path) -> None:
    vmm = Freezer()
    vmm.missing = "the freezer is not installed"
    unused = cast("Any", None)
    service = NodeAgentService(unused, make(tmp_path, vmm), unused, unused, unused)
    request = node_pb2.BuildTemplateRequest(source=SOURCE)
    request.resources.vcpus, request.resources.memory_bytes, request.resources.disk_bytes = 1, 1 << 30, 1 << 30
    with pytest.raises(Internal, match=vmm.missing) as caught:
        async for _ in service.BuildTemplate(request, unused):
            pass
    assert caught.value.reason == "TEMPLATE_BUILD_FAILED"


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
