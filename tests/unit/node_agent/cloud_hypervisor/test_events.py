"""Events out of the bytes that Cloud Hypervisor writes."""

import pytest

from node_agent.drivers.cloud_hypervisor.events import MAX_EVENT_CHARACTERS, Event, EventParser, EventsGarbled

STREAM = b"""{
  "timestamp": {
    "secs": 0,
    "nanos": 8415301
  },
  "source": "vmm",
  "event": "starting",
  "properties": null
}

{
  "timestamp": {
    "secs": 1,
    "nanos": 2
  },
  "source": "virtio-device",
  "event": "activated",
  "properties": {
    "id": "_disk0 \xc3\xa4"
  }
}

{
  "timestamp": {
    "secs": 9,
    "nanos": 1
  },
  "source": "vm",
  "event": "rebooting",
  "properties": null
}

"""
EVENTS = [Event("vmm", "starting"), Event("virtio-device", "activated"), Event("vm", "rebooting")]


def test_a_stream_in_one_piece_and_in_every_two() -> None:
    assert EventParser().feed(STREAM) == EVENTS
    for at in range(len(STREAM)):
        parser = EventParser()
        assert parser.feed(STREAM[:at]) + parser.feed(STREAM[at:]) == EVENTS


def test_a_stream_byte_by_byte() -> None:
    parser = EventParser()
    assert [event for byte in STREAM for event in parser.feed(bytes([byte]))] == EVENTS


def test_an_event_is_there_before_the_line_that_follows_it() -> None:
    assert EventParser().feed(STREAM.rstrip()) == EVENTS


def test_a_stream_that_is_read_from_the_middle_of_an_event() -> None:
    at = STREAM.index(b"activated")
    assert EventParser().feed(STREAM[at:]) == EVENTS[2:]


def test_what_is_no_event_is_passed_over() -> None:
    strange = b'7\n\nnull\n\n[]\n\nnot json\n\n{"source": 1}\n\n' + b"[" * 10_000 + b"\n\n"
    assert EventParser().feed(strange + STREAM) == [Event("1", "None"), *EVENTS]


def test_an_event_without_an_end_is_not_kept_for_ever() -> None:
    parser = EventParser()
    with pytest.raises(EventsGarbled):
        for _ in range(2 * MAX_EVENT_CHARACTERS // 1000):
            parser.feed(b'{"event": "' + b"x" * 1000)


def test_after_which_events_a_vm_does_not_go_on() -> None:
    assert "rebooted" in Event("vm", "rebooting").end()
    assert "panicked" in Event("guest", "panic").end()
    assert "powered off" in Event("vm", "shutdown").end()
    for event in (Event("vm", "resumed"), Event("guest", "rebooting"), Event("virtio-device", "reset")):
        assert event.end() == ""
