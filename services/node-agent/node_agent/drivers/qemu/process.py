"""The QEMU process of one VM: found again by pid and start time, watched by pidfd."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from node_agent.drivers.qemu.command import PORTS
from node_agent.drivers.qemu.qmp import Qmp
from node_agent.vmm import GuestAddress

PROCESS_FILE = "process.json"


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat: with the pid it names a process for ever. None if there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


class QemuProcess:
    """A RunningVm. Alive until its pidfd says otherwise; it outlives this agent."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._pid = pid
        self._pidfd: int | None = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        self.address = address_of(directory)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        if self._pidfd is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        with suppress(ChildProcessError):  # a recovered one is not our child
            os.waitpid(self._pid, os.WNOHANG)
        os.close(self._pidfd)
        self._pidfd = None
        self._ended.set()

    async def exited(self) -> str:
        """Wait for the process."""
        await self._ended.wait()
        return "the QEMU process has ended"

    async def destroy(self) -> None:
        """Kill and reap."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self._ended.wait()


def address_of(directory: Path) -> GuestAddress:
    """The ports of the VM in directory."""
    return GuestAddress("virtio-serial", tuple(str(directory / f"port{number}") for number in range(PORTS)))


def recorded_pid(directory: Path) -> int | None:
    """The pid that directory's record names, if that very process still lives."""
    try:
        record = json.loads((directory / PROCESS_FILE).read_text())
    except (OSError, ValueError):
        return None
    return record["pid"] if start_time(record["pid"]) == record["start_time"] else None


def listen(directory: Path) -> socket.socket:
    """The QMP socket, bound before QEMU starts: there is nothing to poll for."""
    (directory / "qmp").unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "qmp"))
    listener.listen(1)
    return listener


def spawn(arguments: list[str], directory: Path, listener: socket.socket) -> QemuProcess:
    """Start QEMU in a session of its own, so that it survives us, and record it."""
    with (directory / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            arguments,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
    process.returncode = 0  # reaped by pidfd, not by Popen
    record = {"pid": process.pid, "start_time": start_time(process.pid)}
    (directory / PROCESS_FILE).write_text(json.dumps(record))
    return QemuProcess(process.pid, directory)


async def connect(directory: Path) -> Qmp:
    """The control connection of the VM in directory. Raises OSError, QmpError."""
    return await Qmp.connect(str(directory / "qmp"))
