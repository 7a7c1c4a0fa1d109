"""What a VMM says of itself: JSON objects, each followed by an empty line. Pure."""

import codecs
import json
from dataclasses import dataclass

# An event has a few hundred bytes.
MAX_EVENT_CHARACTERS = 64 << 10
# A reboot happens inside the VMM: it would boot a kernel over a clone of a template's memory.
_ENDS = {
    ("vm", "rebooting"): "the guest rebooted",
    ("guest", "panic"): "the guest's kernel panicked",
    ("vm", "shutdown"): "the guest has powered off",
}


class EventsGarbled(Exception):
    """This is no stream of events."""


@dataclass(frozen=True)
class Event:
    """Named as Cloud Hypervisor does: ("vm", "booted"), ("virtio-device", "activated")."""

    source: str
    name: str

    def end(self) -> str:
        """Why no VM goes on after it, for humans; empty for every other event."""
        return _ENDS.get((self.source, self.name), "")


class EventParser:
    """Bytes in, events out. A stream may begin anywhere: what was read before a crash of the agent is lost."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._decoder = json.JSONDecoder()
        self._text = ""

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete by now. Raises EventsGarbled."""
        self._text += self._decode(data)
        events = []
        while (found := self._next()) is not None:
            if isinstance(found, dict):
                events.append(Event(str(found.get("source")), str(found.get("event"))))
        if len(self._text) > MAX_EVENT_CHARACTERS:
            raise EventsGarbled("an event that does not end")
        return events

    def _next(self) -> object | None:
        while True:
            self._text = self._text.lstrip()
            if not self._text:
                return None
            try:
                value, end = self._decoder.raw_decode(self._text)
            except (ValueError, RecursionError):
                _, separator, rest = self._text.partition("\n\n")
                if not separator:
                    return None  # the rest is still to come
                self._text = rest
            else:
                self._text = self._text[end:]
                return value if value is not None else False
