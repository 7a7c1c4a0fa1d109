"""Rules for the whole run: nothing is skipped but Cloud Hypervisor, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Every test that starts processes keeps their files in a directory of this name: sockets need short paths.
SCRATCH = "/tmp/sp-"
# The one suite that may be skipped, as it needs KVM; unless it is all that was asked for.
MAY_BE_SKIPPED = "cloud_hypervisor"
_skipped: list[str] = []
_not_run: dict[str, list[str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    if MAY_BE_SKIPPED in report.keywords and isinstance(report.longrepr, tuple):
        _not_run.setdefault(report.longrepr[2].removeprefix("Skipped: "), []).append(report.nodeid)
    else:
        _skipped.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Nobody takes a suite that did not run for one that passed."""
    for reason, tests in _not_run.items():
        terminalreporter.section("NOT RUN", bold=True, yellow=True)
        terminalreporter.write_line(
            f"THE CLOUD HYPERVISOR SUITE DID NOT RUN ({len(tests)} TESTS): {reason.upper()}", bold=True, yellow=True
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skip or a leak fails the run."""
    problems = [f"skipped: {name}" for name in _skipped]
    if session.config.option.markexpr == MAY_BE_SKIPPED:
        problems += [f"skipped: {name}" for names in _not_run.values() for name in names]
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
