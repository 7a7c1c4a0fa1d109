"""Every moment of a stream is somebody's, once: over retries, and whoever ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from scheduler.stream_clock import StreamClock
from service_kit import telemetry


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, to be set."""
    value = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: value[0])
    yield value


def test_turns_are_added_up_and_what_is_between_streams_is_not(now: list[float]) -> None:
    record = telemetry.begin()
    with StreamClock() as clock:
        now[0] = 1
        clock.sent()
        now[0] = 3
        clock.received()
        now[0] = 6
        clock.delivered()
        now[0] = 10  # the guest's connection breaks
        clock.stopped()
        now[0] = 100
        clock.sent()
        now[0] = 101
        clock.received()
        now[0] = 105  # the client leaves with a message in its hands
    assert record.stages == {"guest": 2 + 4 + 1, "client": 3 + 4}


def test_a_stream_that_never_began_has_no_time(now: list[float]) -> None:
    record = telemetry.begin()
    with pytest.raises(ValueError, match="no route"), StreamClock():
        now[0] = 5
        raise ValueError("no route")
    assert record.stages == {"guest": 0, "client": 0}
