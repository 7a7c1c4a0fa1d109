"""A cgroup for each VMM, where this host lends us some: version 2, and delegated to us or to root."""

import asyncio
import errno
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import structlog

from node_agent.vmm import MachineSpec

log = structlog.get_logger("cgroups")

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "memory", "pids")
OURS, SERVICES = "sandpool", "services"
# The VMM itself: 10 MB, its page tables, and the state of a restore.
VMM_BYTES = 96 << 20
# Ten per VM and one per queue; a VMM that starts more is not well.
MAX_THREADS = 128
CPU_PERIOD_US = 100_000
# A dead process leaves its group a moment after it is reaped.
LEAVE_SECONDS = 1.0
LEAVE_POLL_SECONDS = 0.002


class NoCgroups(Exception):
    """There are none for us; the message says why."""


class Cgroups:
    """PARENT/NAME for each VM. Without a parent there are none, and nothing happens; missing says why."""

    def __init__(self, parent: Path | None, missing: str = "") -> None:
        self._parent = parent
        self.missing = missing

    @classmethod
    def find(cls, root: Path = ROOT) -> "Cgroups":
        """What this host lends us, prepared. It may take moving the processes of a group that was given to us."""
        try:
            return cls(_prepare(_base(root)))
        except NoCgroups as error:
            return cls(None, str(error))
        except OSError as error:
            return cls(None, f"{error.strerror}: {error.filename}")

    def path(self, directory: Path) -> Path | None:
        """Of the VM in directory: named alike by every agent."""
        place = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:12]
        return self._parent / f"{directory.name}-{place}" if self._parent is not None else None

    def name(self, directory: Path) -> str | None:
        """As /proc/PID/cgroup has it."""
        group = self.path(directory)
        return f"/{group.relative_to(ROOT)}" if group is not None else None

    def place(self, directory: Path, pid: int, machine: MachineSpec) -> None:
        """Make the group of the VM in directory and move its VMM there. Raises OSError."""
        group = self.path(directory)
        if group is None:
            return
        group.mkdir(exist_ok=True)
        for name, value in _limits(machine).items():
            (group / name).write_text(value)
        with suppress(OSError):  # a kernel without swap has no such file
            (group / "memory.swap.max").write_text("0")
        (group / "cgroup.procs").write_text(str(pid))

    def lift_memory(self, directory: Path) -> None:
        """For a VMM that saves its paused guest, perhaps to a file that is memory, too. Raises OSError."""
        group = self.path(directory)
        if group is not None:
            (group / "memory.max").write_text("max")

    async def remove(self, directory: Path) -> None:
        """After the end of the VMM, with whatever else is in there; nothing happens if there is none."""
        group, deadline = self.path(directory), time.monotonic() + LEAVE_SECONDS
        if group is None:
            return
        with suppress(OSError):  # no such group, or a kernel before 5.14
            (group / "cgroup.kill").write_text("1")
        while True:
            try:
                group.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    log.warning("cgroup_stays", group=str(group), reason=error.strerror)
                    return
                await asyncio.sleep(LEAVE_POLL_SECONDS)  # its end has no event of its own


def _prepare(base: Path) -> Path:
    """Raises NoCgroups, OSError."""
    missing = set(CONTROLLERS) - set((base / "cgroup.controllers").read_text().split())
    if missing:
        raise NoCgroups(f"this process may not limit {', '.join(sorted(missing))}")
    _lend(base)
    ours = base / OURS
    ours.mkdir(exist_ok=True)
    _lend(ours)
    # All of the host, for as long as the group is there: the kernel patches its scheduler when the first limit of all
    # comes and when the last one goes, which would be with each lonely VM.
    (ours / "cpu.max").write_text(f"{(os.cpu_count() or 1) * CPU_PERIOD_US} {CPU_PERIOD_US}")
    return ours


def _limits(machine: MachineSpec) -> dict[str, str]:
    return {
        "memory.max": str(machine.memory_bytes + VMM_BYTES),
        "memory.oom.group": "1",
        # One more than the guest's: what the VMM does for it is work, too.
        "cpu.max": f"{(machine.vcpus + 1) * CPU_PERIOD_US} {CPU_PERIOD_US}",
        "pids.max": str(MAX_THREADS),
    }


def _base(root: Path) -> Path:
    """What is ours to divide: the group that was delegated to us, or as root the root of all. Raises NoCgroups."""
    if not (root / "cgroup.controllers").exists():
        raise NoCgroups("this host has no cgroups of version 2")
    own = root / Path("/proc/self/cgroup").read_text().strip().rpartition("0::")[2].lstrip("/")
    if own.name == SERVICES and _delegated(own.parent):  # of an earlier agent in the same group
        return own.parent
    if _delegated(own):
        return own
    if os.geteuid() == 0:
        return root
    raise NoCgroups("no cgroup is delegated to this user (systemd: Delegate=yes)")


def _delegated(group: Path) -> bool:
    """systemd marks what it gives away; a user's own group can only have been given."""
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return os.geteuid() != 0 and group.stat().st_uid == os.geteuid()


def _lend(group: Path) -> None:
    """Let its children have the controllers. Raises OSError."""
    controllers = " ".join(f"+{name}" for name in CONTROLLERS)
    try:
        (group / "cgroup.subtree_control").write_text(controllers)
    except OSError as error:
        if error.errno != errno.EBUSY or not _delegated(group):
            raise
        # Processes live in leaves only: whatever is here moves into one.
        (group / SERVICES).mkdir(exist_ok=True)
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (group / SERVICES / "cgroup.procs").write_text(pid)
        (group / "cgroup.subtree_control").write_text(controllers)
