"""The VMM process of one VM: its directory, its start, and what it says while it runs.

The agent's directory of a VM keeps what the agent must be able to trust: the API socket, the fifos, the record of the
process. Inside it "jail" belongs to the VMM and is all that it can reach.
"""

import asyncio
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from node_agent.drivers import process
from node_agent.drivers.cloud_hypervisor import config
from node_agent.drivers.cloud_hypervisor.confine import Confinement
from node_agent.drivers.cloud_hypervisor.events import EventParser, EventsGarbled
from node_agent.drivers.process import VmProcess
from node_agent.vmm import GuestAddress

JAIL, API, EVENTS, LOG = "jail", "api", "events", "log"
TRANSPORT, GUEST_PORT = "hybrid-vsock", 1024
# At a time: a VMM may say more as long as it is listened to, and the event loop has others to serve.
READ_BYTES = 4_096
# What the kernel keeps of a fifo.
FIFO_BYTES = 65_536
# Of what the VMM complains about, for humans.
LOG_BYTES = 4_096

RemoveCgroup = Callable[[Path], Awaitable[None]]


def jail_of(directory: Path) -> Path:
    """What the VMM of the VM in directory owns."""
    return directory / JAIL


def address_of(directory: Path) -> GuestAddress:
    """Of the VM in directory."""
    return GuestAddress(TRANSPORT, (str(jail_of(directory) / config.VSOCK),), GUEST_PORT)


class Fifo:
    """What a VMM writes and we read, kept by the kernel while no agent lives, and never more than it holds.

    The VMM has it open for both directions and does not wait: it neither blocks nor dies of a reader that is gone. A
    fifo and no file: a guest can make its VMM say things without end.
    """

    def __init__(self, path: Path, take: Callable[[bytes], None]) -> None:
        """Begin to read, with what an earlier agent has left. Raises OSError."""
        self._take = take
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        """Take some of what is there. At the end of the VMM it closes itself."""
        if self._descriptor is None:
            return
        with suppress(BlockingIOError):
            if data := os.read(self._descriptor, READ_BYTES):
                self._take(data)
            else:
                self.close()

    def drain(self) -> None:
        """Take what is there, once the VMM has ended."""
        for _ in range(FIFO_BYTES // READ_BYTES):  # a child of it may go on
            self._read()

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


class CloudHypervisorVm:
    """A RunningVm: the process, what it says, and the end of both."""

    def __init__(self, pid: int, directory: Path, remove_cgroup: RemoveCgroup) -> None:
        """Raises ProcessLookupError, OSError."""
        self.directory = directory
        self.address = address_of(directory)
        self.complaint = ""
        self._reason = ""
        self._parser = EventParser()
        self._fifos: list[Fifo] = []
        self._remove_cgroup = remove_cgroup
        self._process = VmProcess(pid, self.address)
        for name, take in ((LOG, self._log), (EVENTS, self._events)):
            with suppress(OSError):  # without it the VM still ends; only the reason is lost
                self._fifos.append(Fifo(directory / name, take))

    @property
    def pid(self) -> int:
        """Of the VMM."""
        return self._process.pid

    def _log(self, data: bytes) -> None:
        self.complaint = (self.complaint + data.decode(errors="replace"))[-LOG_BYTES:]

    def _events(self, data: bytes) -> None:
        try:
            for event in self._parser.feed(data):
                if event.end():
                    self._kill(event.end())
        except EventsGarbled as error:
            self._kill(f"the VMM says {error}")

    def _kill(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._process.kill()

    async def exited(self) -> str:
        """Wait for the end; why, if the VMM said so."""
        detail = await self._process.exited()
        self._close()
        last = " ".join(self.complaint.split("\n")[-2:]).strip()
        return self._reason or (f"{detail}: {last}" if last else detail)

    async def destroy(self) -> None:
        """Kill and reap."""
        await self._process.destroy()
        self._close()
        await self._remove_cgroup(self.directory)

    def _close(self) -> None:
        for fifo in self._fifos:
            fifo.drain()
            fifo.close()


@dataclass(frozen=True)
class Start:
    """One VMM: the program, what it may do, and the files that it gets open. with_us: it ends when we do."""

    program: Path
    confinement: Confinement
    inherited: tuple[int, ...]
    with_us: bool


def spawn(start: Start, directory: Path, remove_cgroup: RemoveCgroup) -> CloudHypervisorVm:
    """Start a VMM without a VM, and record it. Raises OSError."""
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(directory / API))
        events, log = (_fifo(directory / name, stack) for name in (EVENTS, LOG))
        prefix = start.confinement.prefix() + (["--pdeathsig=KILL"] if start.with_us else [])
        vmm = subprocess.Popen(
            [*prefix, *_arguments(start.program, listener.fileno(), events)],
            cwd=jail_of(directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a guest can write to it by a port
            stderr=log,
            env={},
            pass_fds=(listener.fileno(), events, *start.inherited),
            start_new_session=True,
        )
        with process.recording(vmm):
            process.record(directory, vmm.pid)
            # While the fifos are still open here: what a VMM says that ends at once is read, too.
            return CloudHypervisorVm(vmm.pid, directory, remove_cgroup)


def _arguments(program: Path, listener: int, events: int) -> Sequence[str]:
    return (
        str(program),
        f"--api-socket=fd={listener}",
        f"--event-monitor=fd={events}",
        "--seccomp=true",
    )


def _listen(path: Path) -> socket.socket:
    """Bound before the VMM starts: there is nothing to poll for. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


def _fifo(path: Path, stack: ExitStack) -> int:
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor
