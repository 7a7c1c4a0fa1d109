"""What happens while a program runs, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import session_pb2


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
    """Output that was produced and is not delivered: bytes [begin, end) of source. reason: as GapReason."""

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


class Decoder:
    """From the messages of one stream to events; puts the chunks of results together."""

    def __init__(self) -> None:
        self.position = 0
        self._parts: dict[tuple[int, str], list[bytes]] = {}

    def decode(self, message: pb.ExecutionEvent) -> Event | None:
        """None for a chunk of a result that goes on."""
        self.position = message.next_position
        kind = message.WhichOneof("event")
        if kind == "started":
            return _started(message.started)
        if kind == "output":
            is_out = message.output.stream == pb.OUTPUT_STREAM_STDOUT
            return Stdout(message.output.data) if is_out else Stderr(message.output.data)
        if kind == "result":
            return self._display(message.result)
        if kind == "error":
            return Failure(message.error.name, message.error.value, message.error.traceback)
        if kind == "gap":
            return _gap(message.gap)
        if kind == "ended":
            return _ended(message.ended)
        return None  # of a later version

    def _display(self, chunk: pb.ResultChunk) -> Display | None:
        key = (chunk.result_id, chunk.mime_type)
        parts = self._parts.setdefault(key, [])
        parts.append(chunk.data)
        if not chunk.last:
            return None
        del self._parts[key]
        return Display(chunk.result_id, chunk.mime_type, b"".join(parts), chunk.is_value)


def _started(message: pb.ExecutionStarted) -> Started:
    binding = message.session
    previous = ""
    if binding.HasField("previous"):
        previous = session_pb2.EndReason.Name(binding.previous.end_reason).removeprefix("END_REASON_")
    return Started(message.execution_id, binding.epoch, binding.vm_id, binding.created, previous)


def _gap(gap: pb.OutputGap) -> Gap:
    source = f"result {gap.result_id}"
    if gap.HasField("stream"):
        source = pb.OutputStream.Name(gap.stream).removeprefix("OUTPUT_STREAM_").lower()
    return Gap(source, pb.GapReason.Name(gap.reason).removeprefix("GAP_REASON_"), gap.begin, gap.end)


def _ended(ended: pb.ExecutionEnded) -> Ended:
    outcome = ended.WhichOneof("outcome")
    timings = {field.name: getattr(ended.timings, field.name) for field in pb.StageTimings.DESCRIPTOR.fields}
    return Ended(
        exit_code=ended.exit_code if outcome == "exit_code" else None,
        signal=ended.signal if outcome == "signal" else None,
        killed=pb.KillReason.Name(ended.killed).removeprefix("KILL_REASON_") if outcome == "killed" else None,
        cpu_seconds=ended.cpu_seconds,
        peak_memory_bytes=ended.peak_memory_bytes,
        state_lost=ended.state_lost,
        timings=timings,
    )
