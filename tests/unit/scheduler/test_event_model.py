"""The checkers of what guests say against models that look at the whole history again for every message.

A model states what a stream is, in the order of the rules of execution.proto and file.proto; a checker remembers just
enough to decide at once. They must agree on every prefix.
"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import file_pb2
from scheduler.file_check import ReadCheck
from scheduler.guest_check import NO_END, GuestProtocolError, StreamCheck

BOUNDED = settings(max_examples=500, derandomize=True, deadline=None, database=None)
ID = "a"

_numbers = st.integers(0, 4)
_streams = st.sampled_from([1] * 12 + [2] * 6 + [0, 3])
_outputs = st.builds(
    lambda stream, offset, size: {"output": pb.OutputChunk(stream=stream, offset=offset, data=bytes(size))},
    _streams,
    _numbers,
    st.sampled_from([1] * 12 + [2] * 6 + [0]),
)
_results = st.builds(
    lambda one, mime, offset, size, last: {
        "result": pb.ResultChunk(result_id=one, mime_type=mime, offset=offset, data=bytes(size), last=last)
    },
    st.sampled_from([1, 1, 2, 0]),
    st.sampled_from(["m", "m", "n", "x" * 1025]),
    _numbers,
    st.sampled_from([0, 1, 2]),
    st.booleans(),
)
_gaps = st.builds(
    lambda reason, source, begin, end: {"gap": pb.OutputGap(reason=reason, begin=begin, end=end, **source)},
    st.sampled_from([1, 1, 2, 0]),
    st.sampled_from([{"stream": 1}, {"stream": 1}, {"stream": 2}, {"stream": 0}, {"result_id": 1}, {}]),
    _numbers,
    st.sampled_from([1, 2, 3, 4, NO_END]),
)
_errors = st.sampled_from([{"error": pb.ExecutionError(name="E")}, {"error": pb.ExecutionError(name="E" * 1025)}])
_starts = st.sampled_from([ID, ID, "b"]).map(lambda one: {"started": pb.ExecutionStarted(execution_id=one)})
_ends = st.sampled_from(
    [
        pb.ExecutionEnded(exit_code=-1),
        pb.ExecutionEnded(signal=9),
        pb.ExecutionEnded(signal=65),
        pb.ExecutionEnded(killed=1),  # type: ignore[arg-type]
        pb.ExecutionEnded(killed=0),  # type: ignore[arg-type]
        pb.ExecutionEnded(),
        pb.ExecutionEnded(exit_code=0, cpu_seconds=float("nan")),
    ]
).map(lambda end: {"ended": end})
_rare = st.one_of(_errors, _starts, _ends, st.just({}))
_kinds = st.sampled_from([_outputs] * 10 + [_results] * 5 + [_gaps] * 4 + [_rare] * 2).flatmap(lambda kind: kind)


def _event(kind: dict[str, Any], position: int) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(next_position=position, **kind)


@st.composite
def _streams_of_events(draw: st.DrawFn) -> list[pb.ExecutionEvent]:
    """Streams that go on as they should, most of the time: what breaks a rule comes late enough to matter."""
    position, ends, events = 0, {1: 0, 2: 0}, [_event({"started": pb.ExecutionStarted(execution_id=ID)}, 0)]
    for kind in draw(st.lists(_kinds, max_size=10)):
        position = max(0, position + draw(st.sampled_from([1] * 12 + [0] * 4 + [-1])))
        slip = draw(st.sampled_from([0] * 10 + [-1, 1]))
        if "output" in kind and kind["output"].stream in ends:
            output = copy.deepcopy(kind["output"])
            output.offset = max(0, ends[output.stream] + slip)
            ends[output.stream] = output.offset + len(output.data)
            kind = {"output": output}
        elif "gap" in kind and kind["gap"].stream in ends and kind["gap"].end != NO_END:
            gap = copy.deepcopy(kind["gap"])
            gap.begin = max(0, ends[gap.stream] + slip)
            gap.end = gap.begin + kind["gap"].end - 1
            ends[gap.stream] = gap.end
            kind = {"gap": gap}
        events.append(_event(kind, position))
    return events if draw(st.sampled_from([True, True, True, False])) else events[1:]


def allowed(history: list[pb.ExecutionEvent]) -> bool:
    """Whether a guest may have said all this, on one connection, to a reader from the beginning."""
    kinds = [event.WhichOneof("event") for event in history]
    positions = [event.next_position for event in history]
    return (
        all((kind == "started") == (index == 0) for index, kind in enumerate(kinds))
        and None not in kinds
        and "ended" not in kinds[:-1]
        and history[0].started.execution_id == ID
        and positions[0] == 0
        and positions == sorted(positions)
        and kinds.count("error") <= 1
        and all(_sound(event) for event in history)
        and all(_contiguous(history, stream) for stream in (1, 2))
        and all(_results_contiguous(history, key) for key in _result_keys(history))
    )


def _sound(event: pb.ExecutionEvent) -> bool:
    """Of itself, whatever came before."""
    kind, output, result, gap, ended = event.WhichOneof("event"), event.output, event.result, event.gap, event.ended
    if kind == "output":
        return output.stream in (1, 2) and len(output.data) > 0
    if kind == "result":
        return result.result_id > 0 and len(result.mime_type) <= 1024
    if kind == "error":
        return len(event.error.name) <= 1024
    if kind == "gap":
        source = gap.WhichOneof("source")
        whole = gap.reason in (1, 2) and source is not None and gap.begin < gap.end
        limit = gap.reason != 2 or gap.end == NO_END
        return whole and limit and (source == "result_id" or gap.stream in (1, 2))
    if kind == "ended":
        outcome = ended.WhichOneof("outcome")
        right = outcome == "exit_code" or (outcome == "signal" and ended.signal <= 64)
        return (right or (outcome == "killed" and ended.killed > 0)) and ended.cpu_seconds == ended.cpu_seconds
    return True


def _contiguous(history: list[pb.ExecutionEvent], stream: int) -> bool:
    spans = []
    for event in history:
        if event.HasField("output") and event.output.stream == stream:
            spans.append((event.output.offset, event.output.offset + len(event.output.data)))
        elif event.HasField("gap") and event.gap.WhichOneof("source") == "stream" and event.gap.stream == stream:
            spans.append((event.gap.begin, event.gap.end))
    begins, ends = [begin for begin, _ in spans], [0, *(end for _, end in spans)]
    return begins == ends[: len(begins)] and ends[-1] <= NO_END


def _result_keys(history: list[pb.ExecutionEvent]) -> set[tuple[int, str]]:
    return {(event.result.result_id, event.result.mime_type) for event in history if event.HasField("result")}


def _results_contiguous(history: list[pb.ExecutionEvent], key: tuple[int, str]) -> bool:
    """A representation begins at 0, unless any result had a gap before; after its last chunk it may begin again."""
    expected: int | None = 0
    gaps = False
    for event in history:
        if event.HasField("gap") and event.gap.WhichOneof("source") == "result_id":
            gaps = True
            if expected == 0 or event.gap.result_id == key[0]:
                expected = None  # unknown, until it says so
        elif event.HasField("result") and (event.result.result_id, event.result.mime_type) == key:
            if expected is not None and event.result.offset != expected:
                return False
            done = event.result.last
            expected = (None if gaps else 0) if done else event.result.offset + len(event.result.data)
    return True


@BOUNDED
@given(_streams_of_events())
def test_a_stream_is_admitted_as_far_as_the_model_allows(events: list[pb.ExecutionEvent]) -> None:
    check = StreamCheck(ID, 0)
    output = {1: b"", 2: b""}
    for index, event in enumerate(events):
        try:
            admitted = check.admit(copy.deepcopy(event))
        except GuestProtocolError:
            assert not allowed(events[: index + 1])
            return
        assert admitted and allowed(events[: index + 1])
        if event.HasField("output"):
            output[event.output.stream] += event.output.data
    accepted = {1: 0, 2: 0}
    for event in events:
        if event.HasField("output"):
            accepted[event.output.stream] += len(event.output.data)
    assert accepted == {stream: len(data) for stream, data in output.items()}


def _file(kind: str, size: int) -> file_pb2.ReadFileResponse:
    if kind == "info":
        return file_pb2.ReadFileResponse(info=file_pb2.ReadFileInfo(file=file_pb2.FileInfo(path="a" if size else "b")))
    if kind == "data":
        return file_pb2.ReadFileResponse(data=bytes(size))
    if kind == "end":
        return file_pb2.ReadFileResponse(end=file_pb2.ReadFileEnd(sha256=bytes(32 if size else 31)))
    return file_pb2.ReadFileResponse()


_sizes = st.sampled_from([1, 1, 1, 2, 3, 0])
_messages = st.lists(st.tuples(st.sampled_from(["data", "data", "end", "info", "none"]), _sizes), max_size=6)


@BOUNDED
@given(_messages | _messages.map(lambda rest: [("info", 1), *rest]), st.sampled_from([None, 0, 3, 5]))
def test_a_file_is_admitted_as_far_as_the_model_allows(messages: list[tuple[str, int]], length: int | None) -> None:
    check = ReadCheck("a", length)
    for index, (kind, size) in enumerate(messages):
        so_far = messages[: index + 1]
        kinds = [one for one, _ in so_far]
        total = sum(size for one, size in so_far if one == "data")
        shape = kinds[0] == "info" and set(kinds[1:]) <= {"data", "end"} and "end" not in kinds[1:-1]
        allowed_now = shape and all(size for _, size in so_far) and (length is None or total <= length)
        try:
            check.admit(_file(kind, size))
        except GuestProtocolError:
            assert not allowed_now
            return
        assert allowed_now
