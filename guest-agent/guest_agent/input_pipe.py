"""The standard input of a program, as fast as the program reads it."""

import asyncio
from typing import IO


class InputPipe(asyncio.BaseProtocol):
    """Takes bytes from the start; they go to the program once there is one (connect)."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._waiting = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    async def connect(self, pipe: IO[bytes]) -> None:
        """Takes the pipe's writing end over."""
        await asyncio.get_running_loop().connect_write_pipe(lambda: self, pipe)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport
            if self._waiting:
                transport.write(bytes(self._waiting))
            self._waiting.clear()
            if self.closed:
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: the program has closed its end."""
        self.closed, self._transport = True, None
        self._room.set()

    def pause_writing(self) -> None:
        """asyncio's."""
        self._room.clear()

    def resume_writing(self) -> None:
        """asyncio's."""
        self._room.set()

    async def room(self) -> None:
        """Wait until there is room, or the end. Of all who wait the first to write may take it."""
        while not (self.closed or self._room.is_set()):
            await self._room.wait()

    def write(self, data: bytes) -> None:
        """Queue bytes. Nothing happens after the end."""
        if self.closed or not data:
            return
        if self._transport is None:
            self._waiting += data
        else:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until most of what was written is in the pipe, or the program reads no more."""
        await self._room.wait()

    def close(self) -> None:
        """After what is queued."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Now: the program has ended, or there is none."""
        self.closed = True
        self._room.set()
        if self._transport is not None:
            self._transport.abort()
