"""By how much processes grow while something goes on: the kernel's own high-water marks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.installation import Installation

MIB = 1 << 20


def resident(pid: int, field: str = "VmRSS") -> float:
    """MiB of a process now, or at most (VmHWM) since reset()."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} of process {pid}")


def reset(pid: int) -> None:
    """Forget how much a process had before."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass(frozen=True)
class Growth:
    """Of named processes, since begin()."""

    pids: Mapping[str, int]
    before: Mapping[str, float]

    @classmethod
    def begin(cls, pids: Mapping[str, int]) -> Growth:
        """From what they have now."""
        for pid in pids.values():
            reset(pid)
        return cls(pids, {name: resident(pid) for name, pid in pids.items()})

    def most(self) -> tuple[float, str]:
        """MiB, and of which process."""
        return max((resident(pid, "VmHWM") - self.before[name], name) for name, pid in self.pids.items())


def services(up: Installation, vm_id: str) -> dict[str, int]:
    """Every process that the bytes of a session pass through, this one included."""
    wanted = {"scheduler": up.state_dir, "node_agent.tunnel": up.state_dir, "guest_agent": up.vms / vm_id}
    found = {"client": os.getpid()}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            program, *arguments = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        module = arguments[1] if "python" in program and arguments[:1] == ["-m"] else ""
        if module in wanted and str(wanted[module]) in " ".join(arguments):
            found[module] = int(path.name)
    missing = set(wanted) - set(found)
    if missing:
        raise RuntimeError(f"not running: {', '.join(sorted(missing))}")
    return found
