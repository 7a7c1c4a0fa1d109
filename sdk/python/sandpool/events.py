"""What happens while a program runs, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Started:
    """First. previous_end_reason: how the session of this name before this one ended, if created is true; else ''."""

    execution_id: str
    epoch: int
    vm_id: str
    created: bool
    previous_end_reason: str


@dataclass(frozen=True)
class Stdout:
    """Bytes as the program wrote them."""

    data: bytes


@dataclass(frozen=True)
class Stderr:
    """Bytes as the program wrote them."""

    data: bytes


@dataclass(frozen=True)
class Display:
    """One complete representation of a displayed value. is_value: of the last expression of the code."""

    result_id: int
    mime_type: str
    data: bytes
    is_value: bool


@dataclass(frozen=True)
class Failure:
    """The exception that ended the code."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True)
class Gap:
    """Output that was produced and is not delivered: bytes [begin, end) of source.

    source: stdout, stderr or "result N", of which a representation is missing. reason: as GapReason.
    """

    source: str
    reason: str
    begin: int
    end: int


@dataclass(frozen=True)
class Ended:
    """Last. Exactly one of exit_code, signal and killed (as KillReason, without its prefix) is set. timings in us."""

    exit_code: int | None
    signal: int | None
    killed: str | None
    cpu_seconds: float
    peak_memory_bytes: int
    state_lost: bool
    timings: Mapping[str, int]


Event: TypeAlias = Started | Stdout | Stderr | Display | Failure | Gap | Ended


@dataclass
class Result:
    """All of an execution. stdout and stderr: UTF-8, what is not is U+FFFD."""

    started: Started
    stdout: str
    stderr: str
    displays: list[Display]
    error: Failure | None
    gaps: list[Gap]
    ended: Ended

    @property
    def execution_id(self) -> str:
        """Of this execution, for attach."""
        return self.started.execution_id

    @property
    def epoch(self) -> int:
        """Of the session that it ran in."""
        return self.started.epoch

    @property
    def created(self) -> bool:
        """The session was made for it."""
        return self.started.created

    @property
    def previous_end_reason(self) -> str:
        """How the session of this name before this one ended, if created is true; else ''."""
        return self.started.previous_end_reason

    @property
    def exit_code(self) -> int | None:
        """None if it did not end by itself."""
        return self.ended.exit_code

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did."""
        return self.ended.signal

    @property
    def killed(self) -> str | None:
        """Why sandpool killed it, if it did: TIMEOUT, CANCELLED, MEMORY, UNATTENDED or SESSION_ENDED."""
        return self.ended.killed

    @property
    def timings(self) -> Mapping[str, int]:
        """Microseconds of each stage: acquire_us, connect_us, guest_queue_us, guest_run_us, total_us."""
        return self.ended.timings

    @property
    def results(self) -> list[Mapping[str, bytes]]:
        """One per displayed value, in order: its representations by MIME type."""
        bundles: dict[int, dict[str, bytes]] = {}
        for display in self.displays:
            bundles.setdefault(display.result_id, {})[display.mime_type] = display.data
        return list(bundles.values())

    @property
    def ok(self) -> bool:
        """Ended by itself with exit code 0."""
        return self.ended.exit_code == 0

    @property
    def value(self) -> str | None:
        """text/plain of the last expression's value."""
        for display in self.displays:
            if display.is_value and display.mime_type == "text/plain":
                return display.data.decode(errors="replace")
        return None

    def images(self) -> list[bytes]:
        """Every image/png, in order."""
        return [display.data for display in self.displays if display.mime_type == "image/png"]
