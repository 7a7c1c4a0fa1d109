"""The order and bounds that a guest's execution stream must keep. Pure: one StreamCheck per client's stream.

The guest is hostile: what is not allowed here ends its VM.

    state     event                          next state
    AWAITED   started                        STREAMING
    STREAMING output, result, error, gap     STREAMING
    STREAMING ended                          ENDED
    ENDED     end of the stream              (complete)

Anything else raises GuestProtocolError and changes nothing. resume() goes back to AWAITED for a stream that was cut and
attached again; its second started, and what was had already, is not admitted a second time.
"""

import math
from enum import Enum

from google.protobuf import timestamp_pb2

from sandpool.v1 import execution_pb2 as pb

MAX_CHUNK_BYTES = 262_144
MAX_MIME_BYTES = 1024
# Representations that have begun and not ended: each costs memory here.
MAX_OPEN_RESULTS = 64
# Fields of an ExecutionError. The guest cuts characters, of which each may take four bytes.
MAX_ERROR_NAME_BYTES = 4 * 256
MAX_ERROR_VALUE_BYTES = 4 * (16 << 10)
MAX_TRACEBACK_BYTES = 4 * (64 << 10)
MAX_SIGNAL = 64
DEFAULT_PAGE = 100  # of every list
MAX_TOKEN_BYTES = 8192  # a token may hold a path
# google.protobuf.Timestamp: the years 1 to 9999.
MIN_SECONDS, MAX_SECONDS = -62_135_596_800, 253_402_300_799
NO_END = (1 << 64) - 1

_SOURCES = (pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR)
_REASONS = (pb.GAP_REASON_READER_BEHIND, pb.GAP_REASON_OUTPUT_LIMIT)
_KILLS = frozenset(pb.KillReason.values()) - {pb.KILL_REASON_UNSPECIFIED}


class GuestProtocolError(Exception):
    """The guest broke the protocol; the message says which rule, and never holds what the guest sent."""


class StreamState(Enum):
    """Where a stream is."""

    AWAITED = 1
    STREAMING = 2
    ENDED = 3


class StreamCheck:
    """Checks the events of one client's stream.

    position: next_position of the last event that was admitted, and where to attach after a cut.
    """

    def __init__(self, execution_id: str, position: int) -> None:
        self.state = StreamState.AWAITED
        self.position = position
        self.started = False
        self.execution_id = execution_id
        self._resumed = False
        # A reader that begins in the middle learns the offsets from what comes first.
        known = 0 if position == 0 else None
        self._offsets: dict[int, int | None] = dict.fromkeys(_SOURCES, known)
        self._results: dict[tuple[int, str], int] = {}
        self._results_known = position == 0
        self._failed = False
        self._empty_here = 0  # admitted results without bytes at this position: a resumed guest says them again
        self._repeats = 0

    def resume(self) -> None:
        """The stream was cut: the next one attaches at position."""
        if self.state is StreamState.STREAMING:
            self.state = StreamState.AWAITED
        self._resumed = True
        self._repeats = self._empty_here

    def admit(self, event: pb.ExecutionEvent) -> bool:
        """Check the next event; unknown fields are dropped. False: the client has had it. Raises GuestProtocolError."""
        event.DiscardUnknownFields()
        kind = event.WhichOneof("event")
        if self.state is StreamState.ENDED:
            raise GuestProtocolError("an event after the terminal one")
        if (kind == "started") != (self.state is StreamState.AWAITED):
            raise GuestProtocolError("started must come first, and once")
        if kind == "started":
            return self._admit_started(event)
        if event.next_position < self.position:
            raise GuestProtocolError("next_position decreases")
        if self._repeats and self._is_repeat(event):
            return False
        if kind == "output":
            self._admit_output(event.output)
        elif kind == "result":
            self._admit_result(event.result)
        elif kind == "gap":
            if not self._admit_gap(event.gap):
                return False
        elif kind == "error":
            self._admit_error(event.error)
        elif kind == "ended":
            _check_ended(event.ended)
            self.state = StreamState.ENDED
        else:
            raise GuestProtocolError("an event of no kind")
        self._move(event, kind)
        return True

    def finish(self) -> None:
        """The guest ended its stream with OK. Raises GuestProtocolError."""
        if self.state is not StreamState.ENDED:
            raise GuestProtocolError("the stream ended without a terminal event")

    def _move(self, event: pb.ExecutionEvent, kind: str) -> None:
        position = event.next_position
        if position > self.position:
            self.position, self._empty_here, self._repeats = position, 0, 0
        elif kind == "result":
            self._empty_here += 1

    def _is_repeat(self, event: pb.ExecutionEvent) -> bool:
        """Whether a resumed guest says again a result that has no bytes, and so no position of its own."""
        if not event.HasField("result") or event.result.data or event.next_position != self.position:
            return False
        self._repeats -= 1
        return True

    def _admit_started(self, event: pb.ExecutionEvent) -> bool:
        if event.started.execution_id != self.execution_id:
            raise GuestProtocolError("another execution_id than asked for")
        if event.next_position != self.position:
            raise GuestProtocolError("another position than asked for")
        self.state = StreamState.STREAMING
        repeated, self.started = self.started, True
        return not repeated

    def _admit_output(self, output: pb.OutputChunk) -> None:
        if output.stream not in _SOURCES:
            raise GuestProtocolError("an unknown output stream")
        size = len(output.data)
        if not 1 <= size <= MAX_CHUNK_BYTES:
            raise GuestProtocolError("an output chunk of a bad size")
        expected = self._offsets[output.stream]
        if expected is not None and output.offset != expected:
            raise GuestProtocolError("output is not contiguous")
        self._offsets[output.stream] = _add(output.offset, size)

    def _admit_result(self, result: pb.ResultChunk) -> None:
        if result.result_id == 0 or len(result.mime_type.encode()) > MAX_MIME_BYTES:
            raise GuestProtocolError("a bad result id or MIME type")
        if len(result.data) > MAX_CHUNK_BYTES:
            raise GuestProtocolError("a result chunk of a bad size")
        key = (result.result_id, result.mime_type)
        expected = self._results.get(key, 0 if self._results_known else result.offset)
        if result.offset != expected:
            raise GuestProtocolError("a result is not contiguous")
        end = _add(result.offset, len(result.data))
        if result.last:
            self._results.pop(key, None)
            return
        if key not in self._results and len(self._results) >= MAX_OPEN_RESULTS:
            raise GuestProtocolError("too many unfinished results")
        self._results[key] = end

    def _admit_gap(self, gap: pb.OutputGap) -> bool:
        """False for one that says nothing new: a guest may begin it early for a reader that came back."""
        source = gap.WhichOneof("source")
        if gap.reason not in _REASONS or source is None or gap.begin >= gap.end:
            raise GuestProtocolError("a malformed gap")
        if gap.reason == pb.GAP_REASON_OUTPUT_LIMIT and gap.end != NO_END:
            raise GuestProtocolError("a malformed limit")
        if source == "result_id":
            self._results = {key: end for key, end in self._results.items() if key[0] != gap.result_id}
            self._results_known = False  # the ends of representations, and beginnings of others, may be in the gap
            return True
        if gap.stream not in _SOURCES:
            raise GuestProtocolError("an unknown output stream")
        expected = self._offsets[gap.stream]
        if expected is not None and gap.begin != expected:
            if not self._resumed or gap.begin > expected:
                raise GuestProtocolError("a gap that is not contiguous")
            if gap.end <= expected:
                return False
            gap.begin = expected
        self._offsets[gap.stream] = gap.end
        return True

    def _admit_error(self, error: pb.ExecutionError) -> None:
        if self._failed:
            raise GuestProtocolError("more than one error")
        if (
            len(error.name.encode()) > MAX_ERROR_NAME_BYTES
            or len(error.value.encode()) > MAX_ERROR_VALUE_BYTES
            or len(error.traceback.encode()) > MAX_TRACEBACK_BYTES
        ):
            raise GuestProtocolError("an error that is too large")
        self._failed = True


def _add(offset: int, length: int) -> int:
    end = offset + length
    if end > NO_END:
        raise GuestProtocolError("an offset beyond the largest")
    return end


def _check_ended(ended: pb.ExecutionEnded) -> None:
    outcome = ended.WhichOneof("outcome")
    if outcome is None:
        raise GuestProtocolError("a terminal event without an outcome")
    if outcome == "signal" and not 1 <= ended.signal <= MAX_SIGNAL:
        raise GuestProtocolError("an unknown signal")
    if outcome == "killed" and ended.killed not in _KILLS:
        raise GuestProtocolError("an unknown kill reason")
    if not (math.isfinite(ended.cpu_seconds) and ended.cpu_seconds >= 0):
        raise GuestProtocolError("an impossible CPU time")


def check_execution(execution: pb.Execution, execution_id: str | None = None) -> None:
    """One description of an execution, of this id if one was asked for. Raises GuestProtocolError."""
    if execution_id is not None and execution.execution_id != execution_id:
        raise GuestProtocolError("another execution than asked for")
    if not 1 <= len(execution.execution_id) <= 64:
        raise GuestProtocolError("a bad execution_id")
    check_time(execution.created_at)
    if execution.state not in pb.ExecutionState.values():
        raise GuestProtocolError("an unknown state")
    if execution.HasField("ended"):
        _check_ended(execution.ended)


def check_page(count: int, page_size: int, token: str) -> None:
    """The size of a page, and its token. Raises GuestProtocolError."""
    if count > (page_size or DEFAULT_PAGE) or len(token.encode()) > MAX_TOKEN_BYTES:
        raise GuestProtocolError("a page that is too large")
    if token and not count:
        raise GuestProtocolError("an empty page that is not the last")


def check_time(moment: timestamp_pb2.Timestamp) -> None:
    """A moment that every language can hold. Raises GuestProtocolError."""
    if not (MIN_SECONDS <= moment.seconds <= MAX_SECONDS and 0 <= moment.nanos < 10**9):
        raise GuestProtocolError("an impossible time")
