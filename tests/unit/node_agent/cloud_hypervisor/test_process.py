"""A VMM's process and what it says, with a program that stands for a VMM."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from node_agent.drivers.cloud_hypervisor.confine import Confinement
from node_agent.drivers.cloud_hypervisor.process import LOG_BYTES, CloudHypervisorVm, Start, jail_of, spawn
from node_agent.drivers.process import PROCESS_FILE, recorded_pid, unrecorded_pids

REBOOT = b'{"timestamp": {"secs": 1, "nanos": 2}, "source": "vm", "event": "rebooting", "properties": null}\n\n'
# Events as fast as they are read, and as costly as they can be; not for ever, so that a test that fails ends.
TALK = """
import os, pathlib, sys, time
events, end = int(sys.argv[1].rpartition("=")[2]), time.monotonic() + 10
pathlib.Path(__file__).with_name("talks").touch()
while time.monotonic() < end:
    try:
        os.write(events, b"{}" * 2000)
    except BlockingIOError:
        pass
"""
Spawn = Callable[[str], CloudHypervisorVm]


async def remove_nothing(_: Path) -> None:
    return


@pytest_asyncio.fixture
async def spawned() -> AsyncIterator[tuple[Path, Spawn]]:
    """A VM's directory, and what starts a script in it."""
    vms: list[CloudHypervisorVm] = []
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as name:
        directory = Path(name)
        jail_of(directory).mkdir()

        def start(script: str) -> CloudHypervisorVm:
            program = directory / "program"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            me = Confinement(os.getuid(), os.getgid(), tuple(os.getgroups()), is_own=False)
            vms.append(spawn(Start(program, me, (), with_us=False), directory, remove_nothing))
            return vms[-1]

        yield directory, start
        for vm in vms:
            await vm.destroy()


async def test_a_vm_that_reboots_is_killed(spawned: tuple[Path, Spawn]) -> None:
    directory, start = spawned
    vm = start("exec sleep 1000")
    (directory / "events").write_bytes(REBOOT)
    assert await vm.exited() == "the guest rebooted"
    assert recorded_pid(directory) is None


async def test_what_was_said_while_no_agent_lived_still_counts(spawned: tuple[Path, Spawn]) -> None:
    directory, start = spawned
    vm = start("exec sleep 1000")
    vm._close()  # as the end of an agent does
    (directory / "events").write_bytes(REBOOT)
    again = CloudHypervisorVm(vm.pid, directory, remove_nothing)
    assert await again.exited() == "the guest rebooted"


async def test_the_last_words_of_a_vmm_are_the_reason(spawned: tuple[Path, Spawn]) -> None:
    _, start = spawned
    vm = start("echo 'Error booting VM: no way' >&2; exit 1")
    assert await vm.exited() == "the process of the VM has ended with status 1: Error booting VM: no way"


async def test_a_vmm_that_talks_without_end_neither_blocks_nor_fills_anything(spawned: tuple[Path, Spawn]) -> None:
    directory, start = spawned
    vm = start("head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero >&3; true")
    assert await vm.exited()
    assert len(vm.complaint) <= LOG_BYTES
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 10_000


async def test_a_vmm_that_talks_without_end_does_not_keep_the_agent_from_its_work(spawned: tuple[Path, Spawn]) -> None:
    directory, start = spawned
    (directory / "talk.py").write_text(TALK)
    vm = start(f"exec {sys.executable} {directory}/talk.py $2")
    while not (directory / "talks").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert recorded_pid(directory) == vm.pid


async def test_a_vmm_that_cannot_be_recorded_does_not_live(spawned: tuple[Path, Spawn]) -> None:
    directory, start = spawned
    (directory / f"{PROCESS_FILE}.part").mkdir()  # as good as a full disk, for root too
    with pytest.raises(IsADirectoryError):
        start("exec sleep 1000")
    assert unrecorded_pids(directory, jail_of(directory)) == []


async def test_a_vmm_gets_its_directory_and_its_sockets_and_nothing_else(spawned: tuple[Path, Spawn]) -> None:
    directory, start = spawned
    vm = start("pwd > where; env > environment; ls -l /proc/self/fd > open; echo $* > arguments")
    await vm.exited()
    jail = jail_of(directory)
    assert (jail / "where").read_text().strip() == str(jail)
    assert "HOME" not in (jail / "environment").read_text()
    opened = [line.rpartition(" -> ")[2] for line in (jail / "open").read_text().splitlines() if " -> " in line]
    files = {path for path in opened if path.startswith("/") and not path.startswith("/proc/")}
    assert files == {"/dev/null", str(jail / "open"), str(directory / "log"), str(directory / "events")}
    assert (jail / "arguments").read_text().startswith("--api-socket=fd=")
