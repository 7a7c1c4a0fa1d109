"""QEMU's machine protocol over a unix socket: commands, and events that are waited for instead of polled."""

import asyncio
import json
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
        await qmp._replies.get()  # the greeting
        await qmp.execute("qmp_capabilities")
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
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        reply = await self._replies.get()
        if reply is None:
            raise QmpError(f"{command}: QEMU is gone")
        if "error" in reply:
            raise QmpError(f"{command}: {reply['error'].get('desc', '')}")
        return reply.get("return")

    async def migration_ended(self) -> None:
        """Wait until a migration, out or in, has completed. Raises QmpError."""
        while (event := await self._events.get()) is not None:
            if event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "failed"):
                if event["data"]["status"] == "completed":
                    return
                raise QmpError("the migration failed")
        raise QmpError("QEMU is gone")

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        self._writer.close()
