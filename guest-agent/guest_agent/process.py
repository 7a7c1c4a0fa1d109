"""A program that the agent has started, with everything that it starts in turn."""

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass

from guest_agent.cgroup import Cgroups, Group

# Forks that are under way while a group is frozen are seen in the next round.
KILL_ROUNDS = 3


@dataclass(frozen=True)
class ProgramEnd:
    """How it ended: an exit code, or minus a signal. out_of_memory: the kernel killed some of it for want of memory."""

    status: int
    cpu_seconds: float
    peak_memory_bytes: int
    out_of_memory: bool


class Program:
    """Its owner awaits exited, then end, once; until then the leader is not reaped, so its id is not reused.

    In a VM all of it is one control group. Natively it is a process group: what has left that is out of reach, only
    what its leader has waited for is accounted, and the peak of memory begins at the agent's own size.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", cgroups: Cgroups | None, group: Group | None) -> None:
        self._popen = popen
        self._cgroups = cgroups
        self._group = group
        self._cpu_before = 0.0
        self._gone = asyncio.Event()
        self._descriptor = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._see)

    def _see(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._gone.set()

    async def exited(self) -> None:
        """Wait until the leader has ended."""
        await self._gone.wait()

    @property
    def running(self) -> bool:
        """The leader has not ended."""
        return not self._gone.is_set()

    def signal_leader(self, number: int) -> None:
        """To the leader alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._popen.pid, number)

    def signal(self, number: int) -> None:
        """To all of it."""
        if self._group is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, number)
            return
        for pid in self._group.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """All of it, forks under way included."""
        if self._group is None:
            self.signal(signal.SIGKILL)
        else:
            self._group.kill()

    def kill_offspring(self) -> None:
        """All of it but the leader. Natively nothing: they share the leader's process group."""
        if self._group is None:
            return
        for _ in range(KILL_ROUNDS):
            self._group.freeze(True)
            others = [pid for pid in self._group.pids() if pid != self._popen.pid]
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._group.freeze(False)
            if not others:
                return

    def mark(self) -> None:
        """What it uses counts from here; natively from its start."""
        if self._group is not None:
            self._group.mark()
            self._cpu_before = self._group.cpu_seconds()

    def peak_memory_bytes(self) -> int | None:
        """Since the latest mark; None where only the program itself could tell."""
        return None if self._group is None else self._group.peak_memory_bytes()

    async def end(self) -> ProgramEnd:
        """Kill what the leader has left behind, reap it, and account."""
        if self._group is None or self._cgroups is None:
            self.kill()
            return self._reap()
        cpu, peak = self._group.cpu_seconds() - self._cpu_before, self._group.peak_memory_bytes()
        kills = self._group.oom_kills()
        await self._cgroups.end(self._group)
        status = self._reap().status
        return ProgramEnd(status, cpu, peak, kills > 0)

    def _reap(self) -> ProgramEnd:
        _, status, used = os.wait4(self._popen.pid, 0)
        self._popen.returncode = code = os.waitstatus_to_exitcode(status)
        return ProgramEnd(code, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, False)
