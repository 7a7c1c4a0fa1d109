"""A program that writes while a slow reader is being served: every byte is delivered or named in a gap."""

from hypothesis import given
from hypothesis import strategies as st

from guest_agent.output import STDERR, STDOUT, Gap, Item, OutputLog

CAPACITY = 8192


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(1, 6000), st.booleans()), max_size=60))
def test_nothing_is_lost_silently(steps: list[tuple[int, int, bool]]) -> None:
    log = OutputLog(CAPACITY, 1 << 30)
    reader, expected, position = log.attach(0), {STDOUT: 0, STDERR: 0}, 0

    def take(thing: Item | Gap) -> None:
        nonlocal position
        begin = thing.begin if isinstance(thing, Gap) else thing.offset
        assert begin == expected[int(thing.source)]
        expected[int(thing.source)] = thing.end if isinstance(thing, Gap) else thing.offset + len(thing.data)
        moved = thing.position if isinstance(thing, Gap) else thing.end
        assert moved >= position
        position = moved

    source = log.next(reader)
    for stream, size, reads in steps:
        log.write(stream, b"x" * size)
        if reads:
            thing = next(source, None)
            if thing is None:
                source = log.next(reader)
            else:
                take(thing)
    for thing in source:
        take(thing)
    for thing in log.next(reader):
        take(thing)
    assert expected == log.written
    assert position == log.position
