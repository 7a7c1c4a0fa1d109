"""For tests of the services only: every "VM" is a guest agent process on this host. It isolates nothing."""

import asyncio
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from node_agent.drivers.process import VmProcess, record, recorded_pid, recording
from node_agent.vmm import (
    BUILDING,
    GUEST_ADDRESS_FILE,
    Acceleration,
    CloneFailed,
    GuestAddress,
    Image,
    MachineSpec,
    RunningVm,
)

SOCKET = "s"
# The limit of a unix socket's path, less its end.
MAX_SOCKET_PATH = 107
TEMPLATE_FILE = "fake"
GUEST_AGENT = (sys.executable, "-m", "guest_agent")


class FakeVm:
    """A guest agent, and everything that runs in it: where the host allows it, all die with it as in a VM.

    process has started it; the first process of the namespace ends only after all others in there.
    """

    def __init__(self, process: VmProcess) -> None:
        self._process = process
        self._first: VmProcess | None = None
        self.address = process.address
        self.see_first()

    def see_first(self) -> None:
        """Find the first process of the namespace, which is there once the agent is ready."""
        if self._first is None and _namespace():
            with suppress(ProcessLookupError):
                for pid in _children(self._process.pid):
                    self._first = VmProcess(pid, self.address)

    async def exited(self) -> str:
        """Wait for all of it."""
        detail = await self._process.exited()
        if self._first is not None:
            await self._first.exited()
        return detail

    async def destroy(self) -> None:
        """Kill and reap all of it."""
        self.see_first()
        if self._first is not None:
            await self._first.destroy()
        await self._process.destroy()


class FakeVmm:
    """Passes the same behaviour suite as a hypervisor. A clone is a fresh process: it costs a Python start.

    program starts what every VM runs; --unix PATH --data DIR are added.
    """

    name = "fake"

    def __init__(self, program: Sequence[str] = GUEST_AGENT) -> None:
        self._program = tuple(program)

    async def probe(self) -> Acceleration:
        """There is nothing to accelerate."""
        return Acceleration("none", "processes on this host instead of VMs: for tests only, isolates nothing")

    async def fingerprint(self) -> str:
        """Of the guest agent."""
        return hashlib.sha256(version("sandpool").encode()).hexdigest()[:32]

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """A process that can be quiesced is the proof; of its memory nothing can be kept."""
        work = directory / BUILDING
        with _translated("template"):
            work.mkdir()
            running = await _start(self._program, work)
        try:
            await quiesce(running.address)
        finally:
            await running.destroy()
            shutil.rmtree(work)
        (directory / TEMPLATE_FILE).touch(mode=0o444)

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> FakeVm:
        """Start a process."""
        if not (template / TEMPLATE_FILE).exists():
            raise CloneFailed("clone: the template is not complete")
        with _translated("clone"):
            running = await _start(self._program, directory)
            (directory / GUEST_ADDRESS_FILE).write_text(running.address.to_json())
        return running

    async def hibernate(self, vm: RunningVm, directory: Path) -> None:
        """Refuse: the memory of processes cannot be kept."""
        await vm.destroy()
        raise CloneFailed("hibernate: processes of this host have no memory that could be kept: this needs VMs")

    async def recover(self, directory: Path) -> FakeVm | None:
        """By pid and start time; one that was never finished has no address and is killed."""
        pid = recorded_pid(directory)
        if pid is None:
            return None
        with suppress(ProcessLookupError):
            running = FakeVm(VmProcess(pid, _address(directory)))
            if (directory / GUEST_ADDRESS_FILE).exists():
                return running
            await running.destroy()
        return None


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CloneFailed(f"{what}: {error}") from error


@functools.cache
def _namespace() -> tuple[str, ...]:
    """The start of a command that gets a process namespace of its own; nothing where the host has none to give."""
    user = () if os.geteuid() == 0 else ("--user", "--map-current-user")
    prefix = ("unshare", *user, "--pid", "--fork", "--kill-child=KILL")
    with suppress(OSError):
        if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return ()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _address(directory: Path) -> GuestAddress:
    return GuestAddress("unix", (str(directory / SOCKET),))


async def _start(program: Sequence[str], directory: Path) -> FakeVm:
    address = _address(directory)
    if len(address.paths[0]) > MAX_SOCKET_PATH:
        raise CloneFailed(f"{address.paths[0]} is too long for a socket")
    data = directory / "data"
    arguments = [*_namespace(), *program, "--unix", address.paths[0], "--data", str(data)]
    ready_in, ready_out = os.pipe()
    with os.fdopen(ready_in, "rb") as ready:
        try:
            with (directory / "stderr").open("wb") as stderr:
                guest = subprocess.Popen(  # noqa: ASYNC220
                    arguments, stdin=subprocess.DEVNULL, stdout=ready_out, stderr=stderr, start_new_session=True
                )
        finally:
            os.close(ready_out)
        with recording(guest):
            record(directory, guest.pid)
            running = FakeVm(VmProcess(guest.pid, address))
        try:
            line = await _first_line(ready)
        except BaseException:
            await running.destroy()
            raise
    running.see_first()
    if not line.startswith(b"ready guest"):
        await running.destroy()
        raise CloneFailed((directory / "stderr").read_text(errors="replace")[-500:].strip())
    return running


async def _first_line(pipe: BinaryIO) -> bytes:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    try:
        return await reader.readline()
    finally:
        transport.close()
