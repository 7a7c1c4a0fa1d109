"""The checks on what a guest says: everything that an honest guest can say passes, over cuts too; the rest does not."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.execution import _events_of
from guest_agent.output import ITEM_BYTES, OutputLog, Reader
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import file_pb2
from scheduler.file_check import ReadCheck, check_info, check_listed, check_written
from scheduler.guest_check import NO_END, GuestProtocolError, StreamCheck, check_execution, check_page

STARTED = pb.ExecutionEvent(started=pb.ExecutionStarted(execution_id="a"))
ENDED = pb.ExecutionEvent(ended=pb.ExecutionEnded(exit_code=1))
STDOUT, STDERR = pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR
BEHIND, LIMIT = pb.GAP_REASON_READER_BEHIND, pb.GAP_REASON_OUTPUT_LIMIT


def started(position: int = 0, execution_id: str = "a") -> pb.ExecutionEvent:
    return pb.ExecutionEvent(started=pb.ExecutionStarted(execution_id=execution_id), next_position=position)


def output(offset: int, data: bytes, position: int, stream: Any = STDOUT) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(output=pb.OutputChunk(stream=stream, offset=offset, data=data), next_position=position)


def result(position: int, **fields: Any) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(result=pb.ResultChunk(**({"result_id": 1} | fields)), next_position=position)


def gap(position: int, begin: int, end: int, reason: Any = BEHIND, **source: Any) -> pb.ExecutionEvent:
    source = source or {"stream": STDOUT}
    return pb.ExecutionEvent(gap=pb.OutputGap(reason=reason, begin=begin, end=end, **source), next_position=position)


def error(position: int, **fields: Any) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(error=pb.ExecutionError(**fields), next_position=position)


def ended(**fields: Any) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(ended=pb.ExecutionEnded(**fields))


def admit_all(check: StreamCheck, events: list[pb.ExecutionEvent]) -> list[bool]:
    return [check.admit(copy.deepcopy(event)) for event in events]


def test_a_whole_stream() -> None:
    check = StreamCheck("a", 0)
    events = [
        started(),
        output(0, b"abc", 3),
        output(0, b"e", 4, STDERR),
        gap(9, 3, 8),
        output(8, b"x", 10),
        result(12, mime_type="text/plain", data=b"12"),
        result(12, mime_type="text/plain", offset=2, last=True),
        gap(12, 9, NO_END, LIMIT),
        error(20, name="E"),
        pb.ExecutionEvent(ended=pb.ExecutionEnded(exit_code=0), next_position=20),
    ]
    assert all(admit_all(check, events))
    check.finish()


def test_unknown_fields_are_dropped() -> None:
    event = pb.ExecutionEvent.FromString(STARTED.SerializeToString() + b"\xfa\x01\x01x")
    assert event.SerializeToString() != STARTED.SerializeToString()
    StreamCheck("a", 0).admit(event)
    assert event.SerializeToString() == STARTED.SerializeToString()


@pytest.mark.parametrize(
    "events",
    [
        [ENDED],
        [output(0, b"a", 1)],
        [started(), started()],
        [started(execution_id="b")],
        [started(1)],
        [started(), ENDED, ENDED],
        [started(), ENDED, output(0, b"a", 1)],
        [started(), pb.ExecutionEvent()],
        [started(), output(1, b"a", 1)],
        [started(), output(0, b"a", 1), output(0, b"a", 2)],
        [started(), output(0, b"ab", 2), output(2, b"a", 1)],
        [started(), output(0, b"", 0)],
        [started(), output(0, bytes(262_145), 262_145)],
        [started(), output(0, b"a", 1, 3)],
        [started(), output(0, b"a", 1, 0)],
        [started(), result(1, result_id=0, data=b"a")],
        [started(), result(1, mime_type="a" * 1025)],
        [started(), result(262_145, data=bytes(262_145))],
        [started(), result(1, offset=1, data=b"a")],
        [started(), result(1, data=b"a"), result(2, data=b"a")],
        [started(), *[result(1, result_id=number, data=b"a") for number in range(1, 66)]],
        [started(), gap(1, 1, 2)],
        [started(), gap(1, 0, 0)],
        [started(), gap(1, 0, 1, 0)],
        [started(), gap(1, 0, 1, stream=7)],
        [started(), gap(1, 0, 1, LIMIT)],
        [started(), gap(1, 0, 1, LIMIT, result_id=1)],
        [started(), pb.ExecutionEvent(gap=pb.OutputGap(reason=BEHIND, end=1))],
        [started(), gap(0, 0, NO_END, LIMIT), output(0, b"a", 1)],
        [started(), gap(0, 0, NO_END), output(NO_END, b"a", 1)],
        [started(), error(1, name="a"), error(2, name="a")],
        [started(), error(1, name="a" * 1025)],
        [started(), error(1, value="a" * 65_537)],
        [started(), error(1, traceback="a" * 262_145)],
        [started(), ended()],
        [started(), ended(signal=0)],
        [started(), ended(signal=65)],
        [started(), ended(killed=0)],
        [started(), ended(killed=99)],
        [started(), ended(exit_code=0, cpu_seconds=float("nan"))],
        [started(), ended(exit_code=0, cpu_seconds=-1.0)],
    ],
)
def test_what_breaks_a_rule(events: list[pb.ExecutionEvent]) -> None:
    check = StreamCheck("a", 0)
    admit_all(check, events[:-1])
    before = copy.deepcopy(vars(check))
    with pytest.raises(GuestProtocolError):
        check.admit(copy.deepcopy(events[-1]))
    assert vars(check) == before


def test_a_stream_must_come_to_its_end() -> None:
    check = StreamCheck("a", 0)
    for event in (None, started(), output(0, b"a", 1)):
        if event is not None:
            check.admit(event)
        with pytest.raises(GuestProtocolError):
            check.finish()


def test_a_reader_from_the_middle_learns_the_offsets() -> None:
    check = StreamCheck("a", 7)
    assert all(admit_all(check, [started(7), output(5, b"a", 8), gap(9, 0, 3, stream=STDERR), output(6, b"b", 10)]))
    with pytest.raises(GuestProtocolError):
        check.admit(output(9, b"b", 11))


def test_what_was_had_before_a_cut_is_not_said_again() -> None:
    check = StreamCheck("a", 0)
    admit_all(check, [started(), output(0, b"ab", 2), result(2, mime_type="m", last=True)])
    check.resume()
    again = [
        started(2),
        result(2, mime_type="m", last=True),
        result(2, mime_type="n", last=True),
        gap(9, 0, 2, stream=STDOUT),
        gap(9, 0, 7, stream=STDERR),
    ]
    assert admit_all(check, again) == [False, False, True, False, True]


def test_several_gaps_are_not_lost_by_a_cut_between_them() -> None:
    check = StreamCheck("a", 0)
    admit_all(check, [started(), output(0, b"ab", 2), gap(2, 2, 5)])
    check.resume()
    again = [started(2), gap(2, 0, 5), gap(9, 0, 4, stream=STDERR), output(4, b"x", 10, STDERR), output(5, b"x", 11)]
    assert admit_all(check, again) == [False, False, True, True, True]
    assert check.position == 11


def test_a_gap_that_begins_early_is_cut_to_what_is_new() -> None:
    check = StreamCheck("a", 0)
    admit_all(check, [started(), output(0, b"ab", 2)])
    check.resume()
    check.admit(started(2))
    late = gap(9, 0, 5)
    assert check.admit(late) and late.gap.begin == 2


class HonestGuest:
    """The guest agent's own buffer, written to and read from as hypothesis likes."""

    def __init__(self) -> None:
        self.log = OutputLog(capacity=40 + 3 * ITEM_BYTES, output_limit=200)
        self.results = 0

    def write(self, kind: int, size: int) -> None:
        data = bytes(size)
        if kind in (STDOUT, STDERR):
            self.log.write(kind, data)
            return
        self.results += 1
        half = size // 2
        self.log.add_result(self.results, "m", 0, data[:half], False, False)
        self.log.add_result(self.results, "m", half, data[half:], True, False)

    def attach(self, position: int) -> tuple[Reader, pb.ExecutionEvent]:
        return self.log.attach(position), started(position)

    def events(self, reader: Reader) -> Iterator[pb.ExecutionEvent]:
        return iter([event for item in self.log.next(reader) for event in _events_of(item)])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from([1, 2, 3]), st.integers(1, 30)),
        st.tuples(st.just("read"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("cut"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_an_honest_guest_is_never_refused(steps: list[tuple[str, int, int]]) -> None:
    guest, check = HonestGuest(), StreamCheck("a", 0)
    reader, event = guest.attach(0)
    assert check.admit(event)
    had: dict[int, int] = {1: 0, 2: 0}
    events: Iterator[pb.ExecutionEvent] = iter(())

    def take(event: pb.ExecutionEvent) -> None:
        if not check.admit(event):
            return
        if event.HasField("output"):
            assert event.output.offset == had[event.output.stream]
            had[event.output.stream] += len(event.output.data)
        elif event.WhichOneof("event") == "gap" and event.gap.WhichOneof("source") == "stream":
            assert event.gap.begin == had[event.gap.stream]
            had[event.gap.stream] = event.gap.end

    for step, first, second in steps:
        if step == "write":
            guest.write(first, second)
        elif step == "read":
            for _ in range(first):
                if (event_ := next(events, None)) is None:
                    events = guest.events(reader)
                else:
                    take(event_)
        else:
            guest.log.detach(reader)
            check.resume()
            reader, event = guest.attach(check.position)
            events = iter(())
            assert not check.admit(event)
    for event in [*events, *guest.events(reader)]:
        take(event)
    for stream, end in had.items():
        assert end in (guest.log.written[stream], NO_END)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_no_bytes_do_more_than_break_the_protocol(messages: list[bytes]) -> None:
    check = StreamCheck("a", 0)
    check.admit(started())
    for data in messages:
        try:
            event = pb.ExecutionEvent.FromString(data)
        except Exception:
            continue
        try:
            check.admit(event)
        except GuestProtocolError:
            return


INFO = file_pb2.ReadFileResponse(info=file_pb2.ReadFileInfo(file=file_pb2.FileInfo(path="d/a")))
END = file_pb2.ReadFileResponse(end=file_pb2.ReadFileEnd(sha256=bytes(32)))


def data(size: int) -> file_pb2.ReadFileResponse:
    return file_pb2.ReadFileResponse(data=bytes(size))


def test_a_whole_file() -> None:
    for length, messages in [(None, [INFO, END]), (None, [INFO, data(262_144), END]), (5, [INFO, data(5), END])]:
        check = ReadCheck("/mnt/data/./d//a", length)
        for message in messages:
            check.admit(copy.deepcopy(message))
        check.finish()


@pytest.mark.parametrize(
    "messages",
    [
        [END],
        [data(1)],
        [INFO, INFO],
        [INFO, data(0)],
        [INFO, data(262_145)],
        [INFO, data(4), data(2)],
        [INFO, END, END],
        [INFO, END, data(1)],
        [INFO, file_pb2.ReadFileResponse(end=file_pb2.ReadFileEnd(sha256=b"1"))],
        [INFO, file_pb2.ReadFileResponse()],
        [file_pb2.ReadFileResponse(info=file_pb2.ReadFileInfo(file=file_pb2.FileInfo(path="a")))],
    ],
)
def test_a_file_that_breaks_a_rule(messages: list[file_pb2.ReadFileResponse]) -> None:
    check = ReadCheck("d/a", 5)
    for message in messages[:-1]:
        check.admit(copy.deepcopy(message))
    with pytest.raises(GuestProtocolError):
        check.admit(copy.deepcopy(messages[-1]))


def test_answers_about_files_and_executions() -> None:
    check_info(file_pb2.FileInfo(path="a", mode=0o7777))
    check_execution(pb.Execution(execution_id="a", ended=pb.ExecutionEnded(exit_code=0)), "a")
    check_page(100, 0, "t")
    refused: list[Any] = [
        lambda: ReadCheck("a", None).finish(),
        lambda: check_info(file_pb2.FileInfo(path="a" * 12_289)),
        lambda: check_info(file_pb2.FileInfo(link_target="a" * 12_289)),
        lambda: check_info(file_pb2.FileInfo(mode=0o10000)),
        lambda: check_info(file_pb2.FileInfo(type=9)),  # type: ignore[arg-type]
        lambda: check_written(file_pb2.WriteFileResponse(file=file_pb2.FileInfo(path="a"), sha256=b"1"), "a"),
        lambda: check_written(file_pb2.WriteFileResponse(file=file_pb2.FileInfo(path="b"), sha256=bytes(32)), "a"),
        lambda: check_info(file_pb2.FileInfo(path="b"), "a"),
        lambda: check_info(file_pb2.FileInfo(size_bytes=1 << 63)),
        lambda: check_info(file_pb2.FileInfo(modified_at={"seconds": 1 << 40})),
        lambda: check_info(file_pb2.FileInfo(modified_at={"nanos": -1})),
        lambda: check_execution(pb.Execution(execution_id="a", created_at={"seconds": -(1 << 40)})),
        lambda: check_execution(pb.Execution(execution_id="a", state=9)),  # type: ignore[arg-type]
        lambda: check_page(0, 0, "t"),
        lambda: check_execution(pb.Execution(execution_id="b"), "a"),
        lambda: check_execution(pb.Execution()),
        lambda: check_execution(pb.Execution(execution_id="a", ended=pb.ExecutionEnded())),
        lambda: check_page(101, 0, ""),
        lambda: check_page(3, 2, ""),
        lambda: check_page(0, 0, "a" * 8193),
    ]
    for check in refused:
        with pytest.raises(GuestProtocolError):
            check()


@pytest.mark.parametrize(
    ("directory", "recursive", "path", "fits"),
    [
        ("", False, "a", True),
        (".", False, "a/b", False),
        ("/mnt/data", True, "a/b", True),
        ("d", False, "d/a", True),
        ("d/", False, "d/a/b", False),
        ("d", True, "d/a/b", True),
        ("d", True, "d", False),
        ("d", True, "d/", False),
        ("d", True, "dd/a", False),
        ("d", True, "/mnt/data/d/a", False),
    ],
)
def test_a_listing_is_of_the_directory_asked_for(directory: str, recursive: bool, path: str, fits: bool) -> None:
    request = file_pb2.ListFilesRequest(path=directory, recursive=recursive)
    response = file_pb2.ListFilesResponse(files=[file_pb2.FileInfo(path=path)])
    if fits:
        check_listed(request, response)
    else:
        with pytest.raises(GuestProtocolError):
            check_listed(request, response)
