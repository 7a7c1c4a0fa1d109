"""Rows of the table: fixed names, a baseline of the same run, a goal, and what was seen."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

NAMES = (
    "acquire",
    "acquire_rate",
    "execute_native",
    "execute_emulated",
    "cell",
    "clone",
    "first_pandas",
    "idle_memory",
    "used_memory",
    "stream_100mb",
    "file_1gb",
    "burst_8",
    "refill",
    "resume",
    "concurrency",
    "expiry",
    "agent_memory",
    "scheduler_memory",
)


@dataclass(frozen=True)
class Row:
    """value and baseline in unit. goal is what is promised, in words; met says whether this run kept it.

    detail is what else was measured and counts for the goal.
    """

    name: str
    value: float
    unit: str
    baseline_name: str
    baseline: float
    goal: str
    met: bool
    n: int
    failures: int
    detail: str = ""

    @property
    def ratio(self) -> float:
        """value to baseline."""
        return self.value / self.baseline if self.baseline else 0.0

    def to_json(self) -> dict[str, object]:
        """For the file."""
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "baseline": {"name": self.baseline_name, "value": round(self.baseline, 4)},
            "ratio": round(self.ratio, 3),
            "goal": self.goal,
            "met": self.met,
            "n": self.n,
            "failures": self.failures,
            "detail": self.detail,
        }


def p50(seconds: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return statistics.median(seconds) * 1000


def machine() -> dict[str, object]:
    """What this ran on."""
    model = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": model[0] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def report(rows: list[Row], path: Path, names: Sequence[str]) -> int:
    """Print the table and write the file, where other rows stay. Returns 1 if one of names is missing."""
    table = Table("row", "value", "baseline", "ratio", "goal", "met", "n", "failures", "besides")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.value:.3g} {row.unit}",
            f"{row.baseline:.3g} ({row.baseline_name})",
            f"{row.ratio:.2f}",
            row.goal,
            "[green]yes" if row.met else "[red]no",
            str(row.n),
            str(row.failures),
            row.detail,
        )
    Console().print(table)
    path.parent.mkdir(exist_ok=True)
    others = [row for row in _read(path) if row.get("name") not in {None, *(row.name for row in rows)}]
    values = [*others, *(row.to_json() for row in rows), {"machine": machine()}]
    path.write_text(json.dumps(values, indent=2) + "\n")
    missing = set(names) - {row.name for row in rows}
    if missing:
        print("missing rows:", ", ".join(sorted(missing)))
    return 1 if missing else 0


def _read(path: Path) -> list[dict[str, object]]:
    with suppress(OSError, ValueError):
        return [row for row in json.loads(path.read_text()) if isinstance(row, dict)]
    return []
