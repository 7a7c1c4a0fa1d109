"""Rules for the whole run: nothing is skipped but Cloud Hypervisor, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Every test that starts processes keeps their files in a directory of this name: sockets need short paths.
SCRATCH = "/tmp/sp-"
_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped."""
    if report.skipped and "cloud_hypervisor" not in report.keywords and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skip or a leak fails the run."""
    problems = [f"skipped: {name}" for name in _skipped]
    problems += [f"process left: {line}" for line in _processes() if SCRATCH in line]
    problems += [f"directory left: {path}" for path in Path("/tmp").glob("sp-*") if _mine(path)]
    if problems and exitstatus == 0:
        print("\n" + "\n".join(problems))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _mine(path: Path) -> bool:
    """Made since this process began."""
    return path.stat().st_ctime > Path(f"/proc/{os.getpid()}").stat().st_ctime


def _processes() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines
