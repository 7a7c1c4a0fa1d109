"""QEMU's machine protocol over a unix socket: commands, and events that are waited for instead of polled."""

import asyncio
import json
import os
import socket
from typing import Any

# A reply is a few hundred bytes; a QEMU that says more in one line is not well.
MAX_LINE_BYTES = 1 << 20


class QmpError(Exception):
    """QEMU refused a command, or is gone."""


class Qmp:
    """One connection. Commands are sent one at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._replies: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: str) -> "Qmp":
        """Connect and negotiate. Raises OSError, QmpError."""
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)
        qmp = cls(reader, writer)
        try:
            await qmp._next(qmp._replies)  # the greeting
            await qmp.execute("qmp_capabilities")
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                (self._events if "event" in message else self._replies).put_nowait(message)
        except (OSError, ValueError):
            pass  # the same as an end
        self._replies.put_nowait(None)
        self._events.put_nowait(None)

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command. Raises QmpError."""
        self._writer.write(_encoded(command, arguments))
        return await self._answer(command)

    async def give(self, descriptor: int, name: str) -> None:
        """Pass an open file, which is fd:NAME in a later command. Raises QmpError, OSError."""
        # Nothing is on its way: every command waits for its reply.
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as same:
            socket.send_fds(same, [_encoded("getfd", {"fdname": name})], [descriptor])
        await self._answer("getfd")

    async def _answer(self, command: str) -> Any:
        reply = await self._next(self._replies)
        if "error" in reply:
            raise QmpError(f"{command}: {reply['error'].get('desc', '')}")
        return reply.get("return")

    async def migration_ended(self) -> None:
        """Wait until a migration, out or in, has completed. Raises QmpError."""
        while True:
            event = await self._next(self._events)
            if event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "failed"):
                if event["data"]["status"] == "completed":
                    return
                raise QmpError("the migration failed")

    async def _next(self, queue: asyncio.Queue[dict[str, Any] | None]) -> dict[str, Any]:
        message = await queue.get()
        if message is None:
            queue.put_nowait(None)  # the end stays the end, however often one asks
            raise QmpError("QEMU is gone")
        return message

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        self._writer.close()


def _encoded(command: str, arguments: dict[str, Any]) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
