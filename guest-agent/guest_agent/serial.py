"""Independent connections over virtio-serial ports (QEMU), each port one connection at a time.

Every use of a port begins with a line from the host, SYN + 32 hex digits + newline, sent alone in one write. The guest
drops whatever it held for the connection before, answers ACK + the same digits, and serves HTTP/2 from there. QEMU puts
each socket read into a buffer of its own and a guest read never crosses buffers: what reads as a SYN line is one.
"""

import asyncio
import os
import select
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SYN, ACK, LINE_BYTES = b"\xff\xffsandpool SYN1", b"\xff\xffsandpool ACK1", 48
# How the guest ends a connection that the host cannot see closing: GOAWAY with the highest stream id (0 would make the
# client run its calls again), then a SETTINGS frame of an illegal length, at which the client gives up UNAVAILABLE.
BYE = b"\x00\x00\x08\x07\x00" + struct.pack(">III", 0, 0x7FFFFFFF, 2) + b"\x00\x00\x05\x04\x00\x00\x00\x00\x00xxxxx"
# A host that is gone for this long is taken as gone; only to free what a dead connection holds.
GRACE_SECONDS = 1.0
HIGH_BYTES, LOW_BYTES = 256 << 10, 64 << 10
READS_PER_TURN = 64
PORTS = Path("/sys/class/virtio-ports")


class Connection(asyncio.Transport):
    """One per connection: a dead one swallows what late handlers of the old connection still write."""

    def __init__(self, port: "Port") -> None:
        super().__init__()
        self.port: Port | None = port
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes, unless the connection is over."""
        if self.port and not self.closing:
            self.port.push(bytes(data))

    def is_closing(self) -> bool:
        """As asyncio."""
        return self.closing or self.port is None

    def close(self) -> None:
        """Tell the host, and serve nothing more on this connection."""
        if self.port is None or self.closing:
            return
        self.port.push(BYE)
        self.closing = True
        self.port.stopped = False
        if self.port.protocol is not None:
            self.port.loop.call_soon(self.port.protocol.connection_lost, None)

    def abort(self) -> None:
        """The same."""
        self.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is none."""
        return default

    def pause_reading(self) -> None:
        """As asyncio."""
        if self.port:
            self.port.stopped = True

    def resume_reading(self) -> None:
        """As asyncio."""
        if self.port:
            self.port.stopped = False
            self.port.soon()


class Port:
    """One device, opened once and never closed: a close would discard what is in flight."""

    def __init__(self, path: Path, factory: Callable[[], asyncio.Protocol]) -> None:
        self.loop = asyncio.get_running_loop()
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._factory = factory
        self._connection: Connection | None = None
        self.protocol: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._out: deque[bytes] = deque()
        self._size = 0
        self.stopped = self._full = self._scheduled = False

    def soon(self) -> None:
        """Look again in the loop's next turn."""
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.service)

    def service(self, flags: int = 0) -> None:
        """Write what waits and read what is there, to EAGAIN: the epoll is edge-triggered."""
        self._scheduled = False
        if flags & select.EPOLLHUP and self._connection and not self._timer:
            self._timer = self.loop.call_later(GRACE_SECONDS, self._gone)
        self._flush()
        for _ in range(READS_PER_TURN):
            if self.stopped:
                return
            try:
                data = os.read(self.descriptor, 4096)
            except BlockingIOError:
                return
            if not data:
                return  # no host, or its opening has not been processed yet
            self._take(data)
        self.soon()

    def _take(self, data: bytes) -> None:
        if len(data) == LINE_BYTES and data.startswith(SYN):
            self._accept(data)
        elif self._connection and self.protocol and not self._connection.closing:
            self.protocol.data_received(data)

    def _accept(self, line: bytes) -> None:
        self._drop()
        self._connection, self.protocol = Connection(self), self._factory()
        self.push(ACK + line[len(SYN) :])
        self._timer = self.loop.call_later(GRACE_SECONDS, self._gone)
        self.protocol.connection_made(self._connection)

    def _gone(self) -> None:
        """Only the next SYN says for sure that a connection is over: bytes overtake the open and close events."""
        self._timer = None
        poll = select.poll()
        poll.register(self.descriptor, 0)
        if self._connection and poll.poll(0):
            self._drop()

    def _drop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._out.clear()
        self._size = 0
        self.stopped = self._full = False
        connection, protocol = self._connection, self.protocol
        self._connection = self.protocol = None
        if connection and protocol:
            connection.port = None
            if not connection.closing:
                protocol.connection_lost(ConnectionResetError("the host is gone"))

    def push(self, data: bytes) -> None:
        """Queue bytes for the host."""
        self._out.append(data)
        self._size += len(data)
        self._flush()

    def _flush(self) -> None:
        while self._out:
            data = self._out[0]
            try:
                written = os.write(self.descriptor, data)  # at most 32 KiB a call
            except BlockingIOError:
                break
            self._size -= written
            if written == len(data):
                self._out.popleft()
            else:
                self._out[0] = data[written:]
        alive = self._connection is not None and not self._connection.closing and self.protocol is not None
        if not self._full and self._size > HIGH_BYTES:
            self._full = True
            if alive and self.protocol:
                self.protocol.pause_writing()
        elif self._full and self._size <= LOW_BYTES:
            self._full = False
            if alive and self.protocol:
                self.protocol.resume_writing()


class SerialServer:
    """Serves every port. Edge-triggered: a port without a host is in HUP all the time and would spin."""

    def __init__(self, factory: Callable[[], asyncio.Protocol], ports: Iterable[Path]) -> None:
        self._epoll = select.epoll()
        self._ports = {port.descriptor: port for port in (Port(path, factory) for path in ports)}
        for descriptor in self._ports:
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLET)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._poll)

    def _poll(self) -> None:
        for descriptor, flags in self._epoll.poll(0):
            self._ports[descriptor].service(flags)


def find_ports() -> Iterator[Path]:
    """The ports named sandpool.*: their device numbers depend on the order of devices."""
    for entry in sorted(PORTS.iterdir()):
        if (entry / "name").read_text().startswith("sandpool."):
            yield Path("/dev") / entry.name
