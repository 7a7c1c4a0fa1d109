"""One HTTP/2 connection, served by hand: h2 for what must be right, frames of our own for what must not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hyperframe.frame import Frame

HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
# Ends with this class's instances, one per call.
Handler = Callable[["Call"], Awaitable[None]]


def framed(message: bytes, compressed: bool = False) -> bytes:
    """As gRPC sends a message."""
    return struct.pack(">BI", compressed, len(message)) + message


class Call:
    """One call of a client. Methods that say raw ask h2 for nothing: no state, no windows."""

    def __init__(self, connection: Connection, stream_id: int, path: str) -> None:
        self.connection, self.stream_id = connection, stream_id
        self.path = path
        self.received = bytearray()
        self.ended = asyncio.Event()
        self.arrived = asyncio.Event()

    @property
    def request(self) -> bytes:
        """The first message; b"" if it is not whole yet."""
        if len(self.received) < 5:
            return b""
        (size,) = struct.unpack(">I", self.received[1:5])
        return bytes(self.received[5 : 5 + size]) if len(self.received) >= 5 + size else b""

    async def headers(self, extra: list[tuple[str, str]] | None = None, end: bool = False) -> None:
        """The first block; with end, the only one."""
        self.connection.h2.send_headers(self.stream_id, [*HEADERS, *(extra or [])], end_stream=end)
        await self.connection.flush()

    async def data(self, data: bytes) -> None:
        """Within the client's windows."""
        view = memoryview(data)
        while view:
            room = self.connection.h2.local_flow_control_window(self.stream_id)
            room = min(room, self.connection.h2.max_outbound_frame_size, len(view))
            if not room:
                await self.connection.wait_for_window()
                continue
            self.connection.h2.send_data(self.stream_id, bytes(view[:room]))
            await self.connection.flush()
            view = view[room:]

    async def message(self, message: Any) -> None:
        """A whole one."""
        await self.data(framed(message if isinstance(message, bytes) else message.SerializeToString()))

    async def trailers(self, status: int = 0, extra: list[tuple[str, str]] | None = None) -> None:
        """The end."""
        self.connection.h2.send_headers(self.stream_id, [("grpc-status", str(status)), *(extra or [])], end_stream=True)
        await self.connection.flush()

    async def answer(self, message: Any) -> None:
        """Of a unary call."""
        await self.headers()
        await self.message(message)
        await self.trailers()

    async def raw(self, *frames: Frame | bytes) -> None:
        """As they are."""
        await self.connection.send(b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames))


class Connection:
    """Answers each call by the handler, in a task of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler) -> None:
        config = h2.config.H2Configuration(
            client_side=False,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self._reader, self._writer, self._handle = reader, writer, handle
        self._calls: dict[int, Call] = {}
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the client is gone."""
        self.h2.initiate_connection()
        with suppress(ConnectionError, h2.exceptions.ProtocolError):
            await self.flush()
            while data := await self._reader.read(65536):
                for event in self.h2.receive_data(data):
                    self._take(event)
                await self.flush()
        for task in self._tasks:
            task.cancel()
        self._writer.close()

    async def flush(self) -> None:
        """Send what h2 wants to send."""
        await self.send(self.h2.data_to_send())

    async def send(self, data: bytes) -> None:
        """Bytes, paced by the client."""
        self._writer.write(data)
        await self._writer.drain()

    async def wait_for_window(self) -> None:
        """Until a window may have grown."""
        self._moved.clear()
        await self._moved.wait()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            call = Call(self, event.stream_id, dict(event.headers)[":path"])
            self._calls[event.stream_id] = call
            task = asyncio.create_task(self._run(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(event, h2.events.DataReceived):
            call = self._calls[event.stream_id]
            call.received += event.data
            call.arrived.set()
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._calls[event.stream_id].ended.set()
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self._moved.set()

    async def _run(self, call: Call) -> None:
        with suppress(ConnectionError, h2.exceptions.ProtocolError):
            await self._handle(call)
