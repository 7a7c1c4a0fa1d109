"""Control groups of a VM: "agent" for the agent, "user/<name>-<n>" for each command and each language worker.

A memory hog is killed in its own group and a fork bomb stops at pids.max, while the agent has memory and CPU set aside.
"""

import asyncio
import contextlib
import itertools
import os
import select
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = "+cpu +memory +pids"
# For the kernel, the agent and what it buffers (execution.py): user code gets the rest.
RESERVED_BYTES = 96 << 20
AGENT_WEIGHT, USER_WEIGHT = 1000, 50
DEFAULT_PROCESSES = 256
# One group leaves this share of the processes to the others, so that a fork bomb does not stop every other command.
SHARE = 8
# However much others use, a command may have this share of the memory of user code.
LEAST_ROOM = 4
# What others may grow by before they, too, are in question.
MARGIN_BYTES = 16 << 20
# Killed processes are gone in no time, unless they hang in the kernel: then their group is left to a later round.
EMPTY_SECONDS = 2.0
# What is asked for comes in its first lines.
STAT_BYTES = 512
# oom_score_adj of user code: killed before anything else, if the whole machine runs out.
USER_ADJUSTMENT = 500


class Cgroups:
    """Owner of the hierarchy. Needs root and cgroup v2 at ROOT."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._user = root / "user"
        self._numbers = itertools.count(1)
        self._processes = 0
        self._left: list[Group] = []

    def set_up(self) -> None:
        """Enter "agent" and limit "user"; what an agent before this one left there is killed. Raises OSError."""
        for name in ("agent", "user"):
            (self._root / name).mkdir(exist_ok=True)
        (self._user / "cgroup.kill").write_text("1")
        (self._root / "agent" / "cgroup.procs").write_text("0")
        Path("/proc/self/oom_score_adj").write_text("-1000")
        (self._root / "cgroup.subtree_control").write_text(CONTROLLERS)
        (self._root / "agent" / "cpu.weight").write_text(str(AGENT_WEIGHT))
        (self._user / "cpu.weight").write_text(str(USER_WEIGHT))
        (self._user / "memory.max").write_text(str(max(_memory_bytes() - RESERVED_BYTES, RESERVED_BYTES)))
        (self._user / "cgroup.subtree_control").write_text(CONTROLLERS)
        self.limit_processes(DEFAULT_PROCESSES)

    def limit_processes(self, most: int) -> None:
        """How many processes and threads user code may have. Groups that exist keep their own part."""
        if most != self._processes:
            (self._user / "pids.max").write_text(str(most))
            self._processes = most

    def make(self, name: str, *, leave_memory: bool) -> "Group":
        """A fresh group. leave_memory: it is limited to what the others do not use now. Raises OSError."""
        self._left = [group for group in self._left if not group.try_remove()]
        path = self._make_directory(name)
        (path / "memory.oom.group").write_text("1")
        if leave_memory:
            (path / "memory.max").write_text(str(self._room()))
        (path / "pids.max").write_text(str(self._processes - self._processes // SHARE))
        return Group(path)

    def _make_directory(self, name: str) -> Path:
        while True:
            path = self._user / f"{name}-{next(self._numbers)}"
            with contextlib.suppress(FileExistsError):  # of an agent before this one
                path.mkdir()
                return path

    def _room(self) -> int:
        limit = int((self._user / "memory.max").read_text())
        return room_bytes(limit, (self._user / "memory.stat").read_text())

    async def end(self, group: "Group") -> None:
        """Kill everything in a group and remove it."""
        group.kill()
        await group.empty()
        group.close()
        if not group.try_remove():
            self._left.append(group)


class Group:
    """One leaf."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Open, as they are read for every cell.
        self._cpu = os.open(path / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
        self._peak = os.open(path / "memory.peak", os.O_RDWR | os.O_CLOEXEC)

    def add(self, pid: int) -> None:
        """Move a process here: one of ours that has not run user code yet. Raises OSError."""
        (self._path / "cgroup.procs").write_text(str(pid))
        # Written by root: user code cannot lower it again.
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(USER_ADJUSTMENT))

    def pids(self) -> list[int]:
        """Who is in it now."""
        return [int(line) for line in (self._path / "cgroup.procs").read_text().split()]

    def kill(self) -> None:
        """Kill everything in it, forks under way included."""
        (self._path / "cgroup.kill").write_text("1")

    def freeze(self, frozen: bool) -> None:
        """Stop everything in it, or let it go on."""
        (self._path / "cgroup.freeze").write_text(str(int(frozen)))

    def mark(self) -> None:
        """The next peak counts from here (kernel 6.12)."""
        os.write(self._peak, b"0")

    def peak_memory_bytes(self) -> int:
        """Since it was made, or marked."""
        return int(os.pread(self._peak, 32, 0))

    def cpu_seconds(self) -> float:
        """Since it was made."""
        return _field(os.pread(self._cpu, STAT_BYTES, 0).decode(), "usage_usec") / 1e6

    def oom_kills(self) -> int:
        """How many processes have been killed here for want of memory."""
        return _field((self._path / "memory.events").read_text(), "oom_kill")

    async def empty(self) -> bool:
        """Wait until nothing is left in it, at most EMPTY_SECONDS."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with (self._path / "cgroup.events").open("rb", buffering=0) as events, select.epoll() as poll:
            poll.register(events, select.EPOLLPRI)  # an epoll of its own: asyncio knows no EPOLLPRI
            loop.add_reader(poll.fileno(), changed.set)
            try:
                async with asyncio.timeout(EMPTY_SECONDS):
                    while _field(os.pread(events.fileno(), 128, 0).decode(), "populated"):
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                return False
            finally:
                loop.remove_reader(poll.fileno())
        return True

    def close(self) -> None:
        """Once."""
        os.close(self._cpu)
        os.close(self._peak)

    def try_remove(self) -> bool:
        """False while something lives in it."""
        try:
            self._path.rmdir()
        except OSError:
            return False
        return True


def room_bytes(limit: int, memory_stat: str) -> int:
    """What a new command may use of the memory of user code.

    Without it a command that fills memory with files is spared: the larger language worker is killed for it.
    """
    used = sum(_field(memory_stat, kind) for kind in ("anon", "shmem", "kernel")) + MARGIN_BYTES
    return max(limit - used, limit // LEAST_ROOM)


def _field(text: str, name: str) -> int:
    """A number of a flat keyed file; 0 if it is not there."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
