"""A guest agent that breaks the rules: `python -m tests.hostile.guest --unix PATH --data DIR --life NAME`.

NAME says how it answers the node agent (life.py). How it answers the scheduler, each request says itself: as its code,
or as the first name of its path (execution.py, files.py).
"""

import argparse
import asyncio
import os
from pathlib import Path

from . import execution, files
from .life import Life
from .wire import Call, Connection

# The whole of a mute guest: it accepts and says nothing, not even SETTINGS.
MUTE = "mute"


async def main() -> None:
    """Until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--unix", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--life", required=True)
    arguments = parser.parse_args()
    life = Life(arguments.life)

    async def handle(call: Call) -> None:
        _, service, method = call.path.split("/")
        if service.endswith("GuestService"):
            await life.answer(call, method)
        elif service.endswith("ExecutionService"):
            await execution.answer(call, method)
        else:
            await files.answer(call, method)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if life.name == MUTE and "templates" not in arguments.unix.parts:  # a template has to be built first
            await asyncio.Event().wait()
        await Connection(reader, writer, handle).serve()

    server = await asyncio.start_unix_server(accept, arguments.unix)
    print("ready guest", arguments.unix, os.getpid(), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
