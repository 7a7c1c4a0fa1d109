"""How much has passed: counted by the threads that pass it without a lock, and added up by whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service_kit import metrics

OPENED = metrics.counter(
    "sandpool_tunnel_connects_total",
    "CONNECT requests that were answered, by the HTTP status of the answer.",
    ("status",),
)
OPEN = metrics.derived("sandpool_tunnel_connections", "Open connections to VMs.")
PASSED = metrics.derived(
    "sandpool_tunnel_bytes_total", "Bytes that passed, by direction: to_guest or to_client.", ("direction",)
)


class Flow:
    """One direction of one connection. Only its thread writes it."""

    __slots__ = ("passed",)

    def __init__(self) -> None:
        self.passed = 0


class Connection:
    """Both directions."""

    __slots__ = ("to_client", "to_guest")

    def __init__(self) -> None:
        self.to_guest, self.to_client = Flow(), Flow()


class Traffic:
    """Of one tunnel: what is open, and the sum of what is not any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Connection] = set()
        self._to_guest = self._to_client = 0

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Open while the block runs."""
        connection = Connection()
        with self._lock:
            self._open.add(connection)
        try:
            yield connection
        finally:
            with self._lock:
                self._open.remove(connection)
                self._to_guest += connection.to_guest.passed
                self._to_client += connection.to_client.passed

    def read(self) -> Iterator[metrics.Reading]:
        """Now."""
        with self._lock:
            count = len(self._open)
            to_guest = self._to_guest + sum(connection.to_guest.passed for connection in self._open)
            to_client = self._to_client + sum(connection.to_client.passed for connection in self._open)
        yield metrics.Reading(OPEN, count)
        yield metrics.Reading(PASSED, to_guest, ("to_guest",))
        yield metrics.Reading(PASSED, to_client, ("to_client",))
