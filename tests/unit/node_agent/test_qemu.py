"""What a QEMU says before it ends, with a program that stands for one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.drivers.qemu import command, frozen
from node_agent.drivers.qemu.driver import COMPLAINT_CHARACTERS, QemuVmm
from node_agent.drivers.qemu.frozen import Frozen
from node_agent.vmm import CloneFailed, Image, MachineSpec

MACHINE = MachineSpec(1, 1 << 20, 1 << 20)


@pytest.fixture
def place() -> Iterator[Path]:
    """With a short path, a template and the directory of a VM."""
    path = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    template = path / "template"
    for directory in (template, path / "vm"):
        directory.mkdir()
    (template / "memory").write_bytes(bytes(MACHINE.memory_bytes))
    for name in ("state", "scratch", "root"):
        (template / name).write_text("x")
    image = Image(*(template / name for name in ("kernel", "initramfs", "root", "scratch")), image_id="i")
    frozen.seal(template, Frozen(image, MACHINE, "emulation"))
    yield path
    shutil.rmtree(path)


async def clone_with(script: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why that failed."""
    program = place / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(command, "PROGRAM", str(program))
    with pytest.raises(CloneFailed) as caught:
        await QemuVmm().clone(place / "template", MACHINE, place / "vm")
    return str(caught.value)


async def test_the_last_words_of_a_qemu_are_the_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await clone_with("echo qemu: no way >&2", place, monkeypatch)).endswith("; qemu: no way")


async def test_a_qemu_that_talks_without_end_neither_waits_nor_fills_anything(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = await clone_with("yes 'qemu: no way' | head -c 3000000 >&2", place, monkeypatch)
    assert "qemu: no way" in said and len(said) < 2 * COMPLAINT_CHARACTERS
    assert sum(path.stat().st_size for path in (place / "vm").iterdir() if path.is_file()) < 10_000
