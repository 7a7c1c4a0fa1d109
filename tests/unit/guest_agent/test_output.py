"""What the output of one execution promises its readers, where buffers end. Nothing here runs a program."""

import pytest

from guest_agent.execution import BUFFER_BYTES, LEAST_BUFFER_BYTES
from guest_agent.output import ITEM_BYTES, MAX_RESULTS, NO_END, STDERR, STDOUT, Gap, Item, OutputLog, Reader
from guest_agent.pump import PIPE_BYTES, READ_BYTES
from guest_agent.python_language import NAME_BYTES, TRACEBACK_BYTES, VALUE_BYTES


def gaps(log: OutputLog, reader: Reader) -> list[tuple[int | str, int, int, bool]]:
    return [(gap.source, gap.begin, gap.end, gap.limit) for gap in log.next(reader) if isinstance(gap, Gap)]


def test_a_lost_representation_is_told_even_if_another_of_its_value_was_longer() -> None:
    log = OutputLog(2 * (4 + ITEM_BYTES), 1000)
    reader = log.attach(0)
    log.add_result(1, "text/plain", 0, b"1234", True, True)
    assert len(list(log.next(reader))) == 1
    log.add_result(1, "text/html", 0, b"12", False, True)
    for offset in (2, 4, 6):
        log.add_result(1, "text/html", offset, b"34", offset == 6, True)
    assert gaps(log, reader) == [("result", 0, 4, False)]


def test_what_a_reader_has_had_is_not_called_lost() -> None:
    log = OutputLog(2 * (4 + ITEM_BYTES), 1000)
    reader = log.attach(0)
    log.add_result(1, "a", 0, b"1234", True, False)
    list(log.next(reader))
    for source in (STDOUT, STDERR, STDOUT):
        log.write(source, b"1234")
    assert gaps(log, reader) == [(STDOUT, 0, 4, False)]


def test_small_items_hold_the_program_back_before_any_is_dropped() -> None:
    log = OutputLog(100 * ITEM_BYTES, 1 << 20)
    reader = log.attach(0)
    written = 0
    while log.room():
        log.write((STDOUT, STDERR)[written % 2], b"x")
        written += 1
    assert 10 < written < 100
    assert sum(len(item.data) for item in log.next(reader) if isinstance(item, Item)) == written
    assert log.room()


@pytest.mark.parametrize("capacity", [BUFFER_BYTES, LEAST_BUFFER_BYTES])
def test_the_end_of_a_cell_costs_its_only_reader_nothing(capacity: int) -> None:
    log = OutputLog(capacity, 1 << 40)
    reader = log.attach(0)
    while log.room():
        log.write(STDOUT, bytes(READ_BYTES))
    for source in (STDOUT, STDERR):
        log.write(source, bytes(PIPE_BYTES))
    log.add_error(bytes(NAME_BYTES + VALUE_BYTES + TRACEBACK_BYTES))
    assert not gaps(log, reader)


def test_the_marker_of_the_limit_is_told_though_it_was_dropped() -> None:
    log = OutputLog(2 * (4 + ITEM_BYTES), 4)
    reader = log.attach(0)
    log.write(STDOUT, b"12345")
    for number in range(1, 4):
        log.add_result(number, "a", 0, b"1234", True, False)
    assert (STDOUT, 0, NO_END, True) in gaps(log, reader)
    assert gaps(log, log.attach(log.position)) == [(STDOUT, 0, NO_END, True)]


def test_results_without_end_take_no_memory_without_end() -> None:
    log = OutputLog(100 * ITEM_BYTES, 1000)
    for number in range(1, 3 * MAX_RESULTS):
        log.add_result(number, "a", 0, b"", True, False)
    assert len(log._dropped) <= MAX_RESULTS + 1 and log.size_bytes <= log.capacity
    *_, last = log.next(log.attach(0))
    assert isinstance(last, Item) and last.limit_gap and last.result_id == MAX_RESULTS + 1
