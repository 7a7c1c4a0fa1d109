"""Executions: one run of code or of a command, kept by id with its output."""

import asyncio
import hashlib
import itertools
import os
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from google.protobuf import timestamp_pb2

from guest_agent.activity import Activity
from guest_agent.input_pipe import InputPipe
from guest_agent.output import NO_END, Gap, Item, OutputLog
from sandpool.v1 import execution_pb2 as pb

# A program may be this far ahead of its fastest reader, and that much is kept for one who comes later. All that run
# share RUNNING_BYTES, all that have ended ENDED_BYTES: together well below what cgroup.py sets aside for the agent. The
# least is more than what comes unasked (output.py).
BUFFER_BYTES, LEAST_BUFFER_BYTES = 8 << 20, 1 << 20
RUNNING_BYTES, ENDED_BYTES = 24 << 20, 12 << 20
CHUNK_BYTES = 128 << 10
DEFAULT_OUTPUT_LIMIT = 256 << 20
KEPT_ENDED = 256
# Ids of what has ended and is kept no longer: none of them may run again. So many take 11 MB.
REMEMBERED_IDS = 100_000


class ExecutionIdTaken(Exception):
    """The id belongs to an execution with another request."""


class ExecutionForgotten(Exception):
    """The id belongs to an execution that has ended and is kept no longer."""


def _nothing() -> None:
    """Of an execution that has not begun, or has ended."""


def _ignore(_reason: pb.KillReason.ValueType) -> None:
    """The same."""


@dataclass(eq=False)
class Execution:
    """State and output of one execution. end is set exactly once. number counts all of them."""

    number: int
    execution_id: str
    digest: bytes
    background: bool
    output: OutputLog
    created_at: float
    state: pb.ExecutionState.ValueType = pb.EXECUTION_STATE_QUEUED
    end: pb.ExecutionEnded | None = None
    unattended_seconds: float | None = 60.0
    cancel: Callable[[pb.KillReason.ValueType], None] = _ignore
    signal: Callable[[int], None] | None = None
    resume_reading: Callable[[], None] = _nothing
    stdin: InputPipe | None = None
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _lonely: asyncio.TimerHandle | None = None
    _released: bool = False

    def start(self) -> None:
        """The program begins to run."""
        self.state, self.started_at = pb.EXECUTION_STATE_RUNNING, time.monotonic()

    def finish(self, ended: pb.ExecutionEnded) -> None:
        """Set the terminal event, with our timings."""
        now = time.monotonic()
        begun = self.started_at or now
        ended.timings.guest_queue_us = int((begun - self.queued_at) * 1e6)
        ended.timings.guest_run_us = int((now - begun) * 1e6)
        self.state, self.end = pb.EXECUTION_STATE_ENDED, ended
        if self._lonely:
            self._lonely.cancel()
            self._lonely = None
        # Whoever ran it is done with it, and they are a cycle: its output would be kept until the collector comes.
        self.cancel, self.signal, self.resume_reading, self.stdin = _ignore, None, _nothing, None
        self.notify()

    async def ended(self) -> None:
        """Wait for the terminal event."""
        while self.end is None:
            await self._changed.wait()

    def has_room(self) -> bool:
        """The program may go on writing: readers keep up, or nobody waits for them, or it is all discarded."""
        return self._released or self.output.discarding or self.output.room()

    async def room(self) -> None:
        """Wait until there is room for results."""
        while not (self._released or self.output.room()):
            self._moved.clear()
            await self._moved.wait()

    def release(self) -> None:
        """It is being killed: readers no longer hold it back, as its end must come."""
        self._released = True
        self._reader_moved()

    def _reader_moved(self) -> None:
        self._moved.set()
        self.resume_reading()

    def notify(self) -> None:
        """Wake every reader."""
        self._changed.set()
        self._changed = asyncio.Event()

    def watch_loneliness(self) -> None:
        """Without a reader for unattended_seconds, a foreground execution is killed."""
        if self._lonely:
            self._lonely.cancel()
            self._lonely = None
        if not self.output.readers and self.end is None and not self.background and self.unattended_seconds:
            loop = asyncio.get_running_loop()
            self._lonely = loop.call_later(self.unattended_seconds, lambda: self.cancel(pb.KILL_REASON_UNATTENDED))

    async def events(self, position: int, attached: bool) -> AsyncIterator[pb.ExecutionEvent]:
        """The stream of one reader from a position to the terminal event. Raises ValueError for a bad position."""
        reader = self.output.attach(position)
        self.watch_loneliness()
        try:
            started = pb.ExecutionStarted(execution_id=self.execution_id, attached=attached)
            yield pb.ExecutionEvent(started=started, next_position=position)
            while True:
                changed = self._changed
                for item in self.output.next(reader):
                    for event in _events_of(item):
                        yield event
                    self._reader_moved()
                self._reader_moved()  # also if all that there is was had before it attached
                if self.end is not None and reader.position >= self.output.position:
                    yield pb.ExecutionEvent(ended=self.end, next_position=reader.position)
                    return
                if changed is self._changed:
                    await changed.wait()
        finally:
            self.output.detach(reader)
            self._reader_moved()
            self.watch_loneliness()

    def describe(self) -> pb.Execution:
        """The resource that Get and List answer."""
        created = timestamp_pb2.Timestamp()
        created.FromNanoseconds(int(self.created_at * 1e9))
        return pb.Execution(
            execution_id=self.execution_id,
            state=self.state,
            background=self.background,
            created_at=created,
            stdout_bytes=self.output.written[1],
            stderr_bytes=self.output.written[2],
            position=self.output.position,
            ended=self.end,
        )


def _events_of(item: Item | Gap) -> list[pb.ExecutionEvent]:
    if isinstance(item, Gap):
        return [_gap_event(item)]
    if item.limit_gap:
        return [_gap_event(Gap(item.source, item.result_id, item.offset, NO_END, item.position, limit=True))]
    if item.source == "error":
        return [pb.ExecutionEvent(error=pb.ExecutionError.FromString(item.data), next_position=item.end)]
    if item.source == "result":
        result = pb.ResultChunk(
            result_id=item.result_id,
            mime_type=item.mime_type,
            offset=item.offset,
            data=item.data,
            last=item.last,
            is_value=item.is_value,
        )
        return [pb.ExecutionEvent(result=result, next_position=item.end)]
    output = pb.OutputChunk(stream=item.source, offset=item.offset, data=item.data)  # type: ignore[arg-type]
    return [pb.ExecutionEvent(output=output, next_position=item.end)]


def _gap_event(lost: Gap) -> pb.ExecutionEvent:
    reason = pb.GAP_REASON_OUTPUT_LIMIT if lost.limit else pb.GAP_REASON_READER_BEHIND
    gap = pb.OutputGap(reason=reason, begin=lost.begin, end=lost.end)
    if isinstance(lost.source, int):
        gap.stream = lost.source  # type: ignore[assignment]
    else:
        gap.result_id = lost.result_id
    return pb.ExecutionEvent(gap=gap, next_position=lost.position)


class Executions:
    """Every execution of this VM by id: all that run, and the latest KEPT_ENDED that have ended.

    Of REMEMBERED_IDS before those only that they have run is known.
    """

    def __init__(self, activity: Activity) -> None:
        self.activity = activity
        self.background_is_activity = True
        self.by_id: OrderedDict[str, Execution] = OrderedDict()
        self._numbers = itertools.count(1)
        self._forgotten: set[bytes] = set()
        self._forgotten_in_order: deque[bytes] = deque()

    def open(self, request: pb.ExecuteRequest) -> tuple[Execution, bool]:
        """The execution of this request and whether it is new. Raises ExecutionIdTaken, ExecutionForgotten."""
        digest = hashlib.blake2b(request.SerializeToString(deterministic=True)).digest()
        known = self.by_id.get(request.execution_id)
        if known is not None:
            if known.digest != digest:
                raise ExecutionIdTaken
            return known, False
        if _short(request.execution_id) in self._forgotten:
            raise ExecutionForgotten
        execution = Execution(
            next(self._numbers),
            request.execution_id or os.urandom(10).hex(),
            digest,
            request.background,
            OutputLog(self._buffer_bytes(), request.output_limit_bytes or DEFAULT_OUTPUT_LIMIT),
            time.time(),
        )
        if request.HasField("unattended_timeout"):
            execution.unattended_seconds = request.unattended_timeout.ToMilliseconds() / 1000
        self.by_id[execution.execution_id] = execution
        self._forget_old()
        return execution, True

    def thaw(self) -> None:
        """Nobody could read while the machine was frozen: what has no reader gets its whole time for one again."""
        for execution in self.by_id.values():
            execution.watch_loneliness()

    def forget(self, execution: Execution) -> None:
        """It has not run."""
        del self.by_id[execution.execution_id]

    def _buffer_bytes(self) -> int:
        """Half of what is left, within the bounds."""
        used = sum(execution.output.capacity for execution in self.by_id.values() if execution.end is None)
        return max(LEAST_BUFFER_BYTES, min(BUFFER_BYTES, (RUNNING_BYTES - used) // 2))

    def _forget_old(self) -> None:
        ended = [execution for execution in self.by_id.values() if execution.end is not None]
        count, size = len(ended), sum(execution.output.size_bytes for execution in ended)
        for execution in ended:
            if count <= KEPT_ENDED and size <= ENDED_BYTES:
                return
            if not execution.output.readers:
                del self.by_id[execution.execution_id]
                self._remember(execution.execution_id)
                count, size = count - 1, size - execution.output.size_bytes

    def _remember(self, execution_id: str) -> None:
        """No more than that it has run."""
        self._forgotten.add(digest := _short(execution_id))
        self._forgotten_in_order.append(digest)
        if len(self._forgotten_in_order) > REMEMBERED_IDS:
            self._forgotten.remove(self._forgotten_in_order.popleft())


def _short(execution_id: str) -> bytes:
    """In place of an id, which may take four times as much."""
    return hashlib.blake2b(execution_id.encode(), digest_size=16).digest()
