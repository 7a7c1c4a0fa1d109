"""The standard input of a program, as fast as the program reads it."""

import asyncio
from typing import IO


class InputPipe(asyncio.BaseProtocol):
    """One owner of the pipe's writing end."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._room = asyncio.Event()
        self._room.set()

    @classmethod
    async def open(cls, pipe: IO[bytes]) -> "InputPipe":
        """Takes the pipe over."""
        _, protocol = await asyncio.get_running_loop().connect_write_pipe(cls, pipe)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: the program has closed its end."""
        self._transport = None
        self._room.set()

    def pause_writing(self) -> None:
        """asyncio's."""
        self._room.clear()

    def resume_writing(self) -> None:
        """asyncio's."""
        self._room.set()

    @property
    def closed(self) -> bool:
        """Nothing more can be written."""
        return self._transport is None or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        if self._transport is not None and data:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until most of what was written is in the pipe, or the program reads no more."""
        await self._room.wait()

    def close(self) -> None:
        """After what is queued."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Now: the program has ended."""
        if self._transport is not None:
            self._transport.abort()
