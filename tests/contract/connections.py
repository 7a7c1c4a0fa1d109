"""Connections that end badly."""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
from contextlib import suppress
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
# The header of a HEADERS frame of 1000 bytes on stream 1, and a few of them.
HALF_A_FRAME = (1000).to_bytes(3, "big") + b"\x01\x04" + (1).to_bytes(4, "big") + b"\x82\x86"


class CuttingRelay:
    """In front of the tunnel: passes bytes on, and resets both sides after so many of what the guest says."""

    def __init__(self, tunnel: str, cut_after_bytes: int) -> None:
        self._tunnel = tunnel
        self._left = cut_after_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self.was_cut = False
        self.address = ""

    @classmethod
    async def open(cls, tunnel: str, cut_after_bytes: int) -> CuttingRelay:
        """Listen on a free port."""
        relay = cls(tunnel, cut_after_bytes)
        relay._server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
        relay.address = f"127.0.0.1:{relay._server.sockets[0].getsockname()[1]}"
        return relay

    async def __aenter__(self) -> CuttingRelay:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self.was_cut:
            writer.transport.abort()
            return
        host, _, port = self._tunnel.partition(":")
        tunnel_reader, tunnel_writer = await asyncio.open_connection(host, int(port))
        with suppress(OSError):
            up = asyncio.create_task(_pass_on(reader, tunnel_writer))
            try:
                while self._left > 0 and (data := await tunnel_reader.read(min(self._left, 65536))):
                    self._left -= len(data)
                    writer.write(data)
                    await writer.drain()
            finally:
                self.was_cut = self._left <= 0
                up.cancel()
                writer.transport.abort()
                tunnel_writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def half_a_frame(tunnel: str, vm_id: str, token: str) -> None:
    """Connect to a VM, say something incomplete, and reset the connection."""
    host, _, port = tunnel.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    basic = base64.b64encode(f"vm:{token}".encode()).decode()
    writer.write(f"CONNECT {vm_id}.vm.invalid:1 HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode())
    assert (await reader.readline()).split()[1] == b"200"
    writer.write(PREFACE + HALF_A_FRAME)
    await writer.drain()
    assert await reader.read(9)  # the guest has begun to answer
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
