"""From the messages of an execution's streams to events. Pure."""

from __future__ import annotations

from sandpool.enum_names import short_name
from sandpool.events import Display, Ended, Event, Failure, Gap, Started, Stderr, Stdout
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import session_pb2


class Decoder:
    """From the messages of one execution to events; puts the chunks of results together, across broken streams, too."""

    def __init__(self) -> None:
        self._position = 0
        # What has no payload has no position of its own: a stream that goes on here says it again.
        self._empty_here = self._repeats = 0
        self._parts: dict[tuple[int, str], list[bytes]] = {}
        self._incomplete: set[int] = set()

    def resume(self) -> int:
        """The stream broke: the position at which the next one has to be attached."""
        self._repeats = self._empty_here
        return self._position

    def decode(self, message: pb.ExecutionEvent) -> Event | None:
        """None for a chunk of a result that goes on, and for what was said before the stream broke."""
        kind = message.WhichOneof("event")
        if self._is_repeat(kind, message):
            return None
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
            self._break(message.gap)
            return _gap(message.gap)
        if kind == "ended":
            return _ended(message.ended)
        return None  # of a later version

    def _is_repeat(self, kind: str | None, message: pb.ExecutionEvent) -> bool:
        if message.next_position != self._position:
            self._position, self._empty_here, self._repeats = message.next_position, 0, 0
        elif kind == "gap" or (kind == "result" and not message.result.data):
            if self._repeats:
                self._repeats -= 1
                return True
            self._empty_here += 1
        return False

    def _display(self, chunk: pb.ResultChunk) -> Event | None:
        key = (chunk.result_id, chunk.mime_type)
        if chunk.offset and key not in self._parts:  # its beginning is missing: attached later, or a gap
            if chunk.result_id in self._incomplete:
                return None
            self._incomplete.add(chunk.result_id)
            return Gap(f"result {chunk.result_id}", "READER_BEHIND", 0, chunk.offset)
        parts = self._parts.setdefault(key, [])
        parts.append(chunk.data)
        if not chunk.last:
            return None
        del self._parts[key]
        return Display(chunk.result_id, chunk.mime_type, b"".join(parts), chunk.is_value)

    def _break(self, gap: pb.OutputGap) -> None:
        """A value with a hole is none."""
        if gap.HasField("result_id"):
            self._incomplete.add(gap.result_id)
            self._parts = {key: parts for key, parts in self._parts.items() if key[0] != gap.result_id}


def _started(message: pb.ExecutionStarted) -> Started:
    binding = message.session
    previous = ""
    if binding.HasField("previous"):
        previous = short_name(session_pb2.EndReason.DESCRIPTOR, binding.previous.end_reason)
    return Started(message.execution_id, binding.epoch, binding.vm_id, binding.created, previous)


def _gap(gap: pb.OutputGap) -> Gap:
    source = f"result {gap.result_id}"
    if gap.HasField("stream"):
        source = short_name(pb.OutputStream.DESCRIPTOR, gap.stream).lower()
    return Gap(source, short_name(pb.GapReason.DESCRIPTOR, gap.reason), gap.begin, gap.end)


def _ended(ended: pb.ExecutionEnded) -> Ended:
    outcome = ended.WhichOneof("outcome")
    timings = {field.name: getattr(ended.timings, field.name) for field in pb.StageTimings.DESCRIPTOR.fields}
    return Ended(
        exit_code=ended.exit_code if outcome == "exit_code" else None,
        signal=ended.signal if outcome == "signal" else None,
        killed=short_name(pb.KillReason.DESCRIPTOR, ended.killed) if outcome == "killed" else None,
        cpu_seconds=ended.cpu_seconds,
        peak_memory_bytes=ended.peak_memory_bytes,
        state_lost=ended.state_lost,
        timings=timings,
    )
