"""What a VMM may do, and the proof of it: a guest that has taken over its VMM has gained nothing but that."""

import asyncio
import ctypes
import os
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from node_agent.vmm import MachineSpec

DEVICE = Path("/dev/kvm")
# A thread filters its system calls as the first thing it does.
FILTERING_SECONDS = 5.0
POLL_SECONDS = 0.005
# The VMM makes its table of open files that large at the start; growing it later stalls a restore.
OPEN_FILES = 4096
# A disk's file is as large as the disk, and a snapshot as the memory; each with a few bytes more.
FILE_SLACK_BYTES = 64 << 20
_NO_CAPABILITIES = "0" * 16
# linux/landlock.h; the number is the same on every architecture. The third version came with Linux 6.2.
LANDLOCK_VERSION = 3
_LANDLOCK_CREATE_RULESET, _LANDLOCK_CREATE_RULESET_VERSION = 444, 1


class Unconfined(Exception):
    """The VMM may do more than it should, or nobody can tell; the message says what."""


@dataclass(frozen=True)
class UidRange:
    """User ids that belong to VMs alone; no account of the host has one of them."""

    first: int
    count: int

    def __contains__(self, uid: object) -> bool:
        return isinstance(uid, int) and self.first <= uid < self.first + self.count

    def of_builders(self) -> int:
        """Templates boot nothing but our own code: they share the first."""
        return self.first

    def free(self, vms: Path) -> int:
        """One that no other VM has: every VM's own directory belongs to its user. Raises Unconfined."""
        used = set()
        for jail in vms.glob("*/jail"):
            with suppress(FileNotFoundError):  # a dead VM's, which is being removed
                used.add(jail.stat().st_uid)
        for uid in range(self.first + 1, self.first + self.count):
            if uid not in used:
                return uid
        raise Unconfined("every user id for VMs is in use")


@dataclass(frozen=True)
class Confinement:
    """Of one VMM. Only root can give it a user of its own; another agent's VMMs run as the agent's own user."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    is_own: bool

    def prefix(self) -> list[str]:
        """Of the VMM's command line."""
        command = ["setpriv", "--no-new-privs", "--inh-caps=-all"]
        if not self.is_own:
            return command
        groups = f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups"
        return [*command, "--bounding-set=-all", f"--reuid={self.uid}", f"--regid={self.gid}", groups]

    def take(self, path: Path) -> None:
        """Make a file or directory the VMM's own."""
        if self.is_own:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


def own_user(uid: int) -> Confinement:
    """A user of its own, if we are root. Raises Unconfined."""
    if os.geteuid() != 0:
        return Confinement(os.getuid(), os.getgid(), tuple(os.getgroups()), is_own=False)
    return Confinement(uid, uid, _device_groups(DEVICE.stat()), is_own=True)


def _device_groups(device: os.stat_result) -> tuple[int, ...]:
    """What it takes to open the device. Raises Unconfined."""
    if device.st_mode & 0o006 == 0o006:
        return ()
    if device.st_mode & 0o060 == 0o060 and device.st_gid != 0:
        return (device.st_gid,)
    mode = stat.filemode(device.st_mode)
    raise Unconfined(f"only root may use {DEVICE} ({mode}): give it to the group kvm, to read and write")


def limit(pid: int, machine: MachineSpec) -> None:
    """Set what every process has limits for. Raises OSError."""
    file_bytes = max(machine.memory_bytes, machine.disk_bytes) + FILE_SLACK_BYTES
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, files),
    ):
        resource.prlimit(pid, kind, (value, value))


async def prove(pid: int, confinement: Confinement, cgroup: str | None) -> None:
    """Read back from the kernel what every thread of a VMM may do. Raises Unconfined."""
    deadline = time.monotonic() + FILTERING_SECONDS
    while problem := next(problems(pid, confinement, cgroup), ""):
        if time.monotonic() > deadline:
            raise Unconfined(problem)
        await asyncio.sleep(POLL_SECONDS)  # a thread that has just begun; nothing tells when it filters


def problems(pid: int, confinement: Confinement, cgroup: str | None) -> Iterator[str]:
    """Whatever is not as it should be now, in words."""
    try:
        tasks = sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
        for task in tasks:
            status = Path(f"/proc/{pid}/task/{task}/status").read_text()
            for what in thread_problems(status, confinement, is_main=task == pid):
                yield f"thread {task}: {what}"
        # Threads are not divided among groups unless a group is made for that, and ours is not.
        if cgroup is not None and Path(f"/proc/{pid}/cgroup").read_text().strip() != f"0::{cgroup}":
            yield f"it is not in {cgroup}"
    except OSError as error:
        yield f"cannot be read: {error}"


def thread_problems(status: str, confinement: Confinement, *, is_main: bool) -> Iterator[str]:
    """The same for the text of /proc/PID/task/TID/status. Pure."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    found = {name: value.split() for name, value in fields.items()}
    groups = set(confinement.groups) | ({confinement.gid} if not confinement.is_own else set())
    wanted = {
        "Uid": [str(confinement.uid)] * 4,
        "Gid": [str(confinement.gid)] * 4,
        "NoNewPrivs": ["1"],
        **{name: [_NO_CAPABILITIES] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")},
    }
    if confinement.is_own:
        # Of an ordinary user the bounding set stays: only root could empty it, and without new privileges it is moot.
        wanted["CapBnd"] = [_NO_CAPABILITIES]
    if not is_main:
        # The main thread does nothing but wait for the others: the VMM gives it no filter.
        wanted["Seccomp"] = ["2"]
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{name} is {' '.join(found.get(name, ['missing']))}, not {' '.join(value)}"
    if not set(map(int, found.get("Groups", ()))) <= groups:
        yield f"Groups are {' '.join(found['Groups'])}"


def landlock_version() -> int:
    """Of this kernel; 0 if there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)))
