"""Processes that outlive the agent: found again by pid and start time, watched by pidfd. For every driver."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node_agent.vmm import GUEST_ADDRESS_FILE, GuestAddress

PROCESS_FILE = "process.json"


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat: with the pid it names a process for ever. None if there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def record(directory: Path, pid: int) -> None:
    """Write down, atomically, which process is the VM in directory. Raises OSError."""
    part = directory / f"{PROCESS_FILE}.part"
    part.write_text(json.dumps({"pid": pid, "start_time": start_time(pid)}))
    part.rename(directory / PROCESS_FILE)


@contextmanager
def recording(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """A child that is to outlive us: it is killed if this fails, as nobody would find it again."""
    try:
        yield
    except BaseException:
        child.kill()
        child.wait()
        raise
    child.returncode = 0  # reaped by pidfd, not by Popen


def recorded_pid(directory: Path) -> int | None:
    """The pid that directory's record names, if that very process still lives."""
    try:
        values = json.loads((directory / PROCESS_FILE).read_text())
        return int(values["pid"]) if start_time(values["pid"]) == values["start_time"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def unrecorded_pids(directory: Path, place: Path | None = None) -> list[int]:
    """Processes of a VM of which none was ever recorded: an agent was killed between start and record().

    They work in directory, or in the place of it that is the driver's. A VM that has an address had a record: without
    it, nothing proves that it is ours.
    """
    if (directory / PROCESS_FILE).exists() or (directory / GUEST_ADDRESS_FILE).exists():
        return []
    found, working = [], (place or directory).resolve()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if (path / "cwd").readlink() == working:
                found.append(int(path.name))
    return found


class VmProcess:
    """A RunningVm that is one process. Alive until its pidfd says otherwise."""

    def __init__(self, pid: int, address: GuestAddress) -> None:
        """Raises ProcessLookupError."""
        self.pid = pid
        self._pidfd: int | None = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        self._how = "the process of the VM has ended"
        self.address = address
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        if self._pidfd is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        with suppress(ChildProcessError):  # a recovered one is not our child
            reaped, status = os.waitpid(self.pid, os.WNOHANG)
            if reaped:
                self._how = _told(os.waitstatus_to_exitcode(status))
        os.close(self._pidfd)
        self._pidfd = None
        self._ended.set()

    async def exited(self) -> str:
        """Wait for the process; how it has ended, unless another agent had started it."""
        await self._ended.wait()
        return self._how

    def kill(self) -> None:
        """Without waiting."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def destroy(self) -> None:
        """Kill and reap."""
        self.kill()
        await self._ended.wait()


def _told(code: int) -> str:
    """A VMM that was killed, one that gave up and a guest that ended itself (0) are three different troubles."""
    if code >= 0:
        return f"the process of the VM has ended with status {code}"
    return f"the process of the VM was killed by signal {-code} ({signal.strsignal(-code)})"
