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
    wanted = {"scheduler": "scheduler", "node_agent.tunnel": "tunnel", "guest_agent": f"/{vm_id}/"}
    found = {"client": os.getpid()}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        line = " ".join(words)
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        if module in wanted and words[0].endswith(("python", "python3")) and str(up.state_dir) in line:
            if module != "guest_agent" or wanted[module] in line:
                found[module] = int(path.name)
    missing = set(wanted) - set(found)
    if missing:
        raise RuntimeError(f"not running: {', '.join(sorted(missing))}")
    return found
