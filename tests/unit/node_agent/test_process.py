"""Processes that nobody has written down."""

import asyncio
import errno
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from node_agent.drivers.process import PROCESS_FILE, VmProcess, record, start_time, unrecorded_pids
from node_agent.drivers.qemu.driver import WRITER, QemuVmm
from node_agent.drivers.qemu.process import spawn
from node_agent.vmm import GuestAddress


async def test_a_process_that_was_never_recorded_is_found_by_where_it_works(tmp_path: Path) -> None:
    vm, link = tmp_path / "vm", tmp_path / "link"
    vm.mkdir()
    link.symlink_to(vm)
    process = await asyncio.create_subprocess_exec("sleep", "1000", cwd=vm)
    assert unrecorded_pids(vm) == unrecorded_pids(link) == [process.pid]
    assert unrecorded_pids(tmp_path) == []
    record(vm, process.pid)
    assert unrecorded_pids(vm) == []
    process.kill()
    await process.wait()


async def test_a_record_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "1000", cwd=tmp_path)

    def write_nothing(path: Path, _: str) -> NoReturn:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_nothing)
    with pytest.raises(OSError, match="No space left"):
        record(tmp_path, process.pid)
    assert unrecorded_pids(tmp_path) == [process.pid]
    process.kill()
    await process.wait()


async def test_a_qemu_that_cannot_be_recorded_does_not_live(tmp_path: Path) -> None:
    (tmp_path / f"{PROCESS_FILE}.part").mkdir()  # as good as a full disk, for root too
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(IsADirectoryError):
        spawn(["sleep", "1000"], tmp_path, listener, subprocess.DEVNULL)
    assert unrecorded_pids(tmp_path) == []


async def test_a_qemu_that_was_to_write_a_memory_ends_even_if_it_was_never_recorded(tmp_path: Path) -> None:
    place = tmp_path / WRITER
    place.mkdir()
    writer = await asyncio.create_subprocess_exec("sleep", "1000", cwd=place)
    assert await QemuVmm().recover(tmp_path) is None
    left = start_time(writer.pid)
    with suppress(ProcessLookupError):
        writer.kill()
    await writer.wait()
    assert left is None


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", "has ended with status 0"),  # a guest that reboots, panics or turns itself off
        ("exit 3", "has ended with status 3"),
        ("kill -KILL $$", "was killed by signal 9 (Killed)"),
        ("kill -SEGV $$", "was killed by signal 11 (Segmentation fault)"),
    ],
)
async def test_how_a_process_has_ended_is_told(tmp_path: Path, script: str, told: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        vm = spawn(["sh", "-c", script], tmp_path, listener, subprocess.DEVNULL)
    async with asyncio.timeout(60):
        assert await vm.exited() == f"the process of the VM {told}"


async def test_how_a_process_has_ended_that_another_agent_had_started_is_not_known() -> None:
    pipe = asyncio.subprocess.PIPE
    agent = await asyncio.create_subprocess_exec("sh", "-c", "sleep 1000 >&- & echo $!; wait", stdout=pipe)
    assert agent.stdout is not None
    vm = VmProcess(int(await agent.stdout.readline()), GuestAddress("unix", ("nowhere",)))
    vm.kill()
    async with asyncio.timeout(60):
        assert await vm.exited() == "the process of the VM has ended"
    await agent.wait()
