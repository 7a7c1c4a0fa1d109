"""Bytes both ways between two sockets, until either end is gone. Blocking; one thread per connection."""

import select
import socket

CHUNK_BYTES = 256 << 10
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class _Way:
    """One direction and the bytes that it holds: at most one chunk."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.held = memoryview(b"")

    def fill(self) -> bool:
        """Take a chunk. False at the end of the source."""
        try:
            data = self.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return True
        self.held = memoryview(data)
        return bool(data)

    def empty(self) -> None:
        """Pass on what the target takes."""
        try:
            self.held = self.held[self.target.send(self.held) :]
        except BlockingIOError:
            return


def relay(one: socket.socket, other: socket.socket) -> None:
    """Return when either end has closed or half-closed (HTTP/2 never half-closes) or broken. Closes neither.

    One poll loop for both directions: a thread that is blocked on a full peer would miss its client's death.
    """
    one.setblocking(False)
    other.setblocking(False)
    ways = (_Way(one, other), _Way(other, one))
    poll = select.poll()
    while True:
        for sock in (one, other):
            wanted = select.POLLRDHUP
            for way in ways:
                if way.source is sock and not way.held:
                    wanted |= select.POLLIN
                if way.target is sock and way.held:
                    wanted |= select.POLLOUT
            poll.register(sock, wanted)
        ready = dict(poll.poll())
        try:
            for way in ways:
                events = ready.get(way.source.fileno(), 0)
                if not way.held and events & select.POLLIN and not way.fill():
                    return
                if way.held:
                    way.empty()
        except OSError:
            return
        if any(events & _GONE and not events & select.POLLIN for events in ready.values()):
            return
