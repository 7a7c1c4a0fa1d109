"""Bytes both ways between two sockets, until either end is gone. Blocking; one thread per connection."""

import select
import socket

from node_agent.tunnel.traffic import Connection, Flow
from service_kit import failpoint

CHUNK_BYTES = 256 << 10
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class _Way:
    """One direction and the bytes that it holds: at most one chunk."""

    def __init__(self, source: socket.socket, target: socket.socket, flow: Flow) -> None:
        self.source, self.target, self.flow = source, target, flow
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
            sent = self.target.send(self.held)
        except BlockingIOError:
            return
        self.held = self.held[sent:]
        self.flow.passed += sent


def relay(client: socket.socket, guest: socket.socket, connection: Connection) -> None:
    """Return when either end has closed or half-closed (HTTP/2 never half-closes) or broken. Closes neither.

    One poll loop for both directions: a thread that is blocked on a full peer would miss its client's death.
    """
    client.setblocking(False)
    guest.setblocking(False)
    ways = (_Way(client, guest, connection.to_guest), _Way(guest, client, connection.to_client))
    poll = select.poll()
    while True:
        for sock in (client, guest):
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
                    failpoint.reach(failpoint.Place.BYTES_RELAYED)
        except OSError:
            return
        if any(events & _GONE and not events & select.POLLIN for events in ready.values()):
            return
