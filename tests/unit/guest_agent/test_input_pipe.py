"""Standard input takes no more than its program reads."""

import asyncio
import os

from guest_agent.input_pipe import InputPipe

MEGABYTE = 1 << 20


async def test_of_all_who_wait_for_room_one_may_write() -> None:
    theirs, ours = os.pipe()
    stdin, program = InputPipe(), asyncio.StreamReader()
    await stdin.connect(os.fdopen(ours, "wb", buffering=0))

    async def put() -> None:
        await stdin.room()
        stdin.write(bytes(MEGABYTE))

    calls = [asyncio.ensure_future(put()) for _ in range(3)]
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(program), os.fdopen(theirs, "rb")
    )
    await program.readexactly(MEGABYTE + 1)  # of the second
    assert [call.done() for call in calls] == [True, True, False]
    stdin.abort()
    await asyncio.wait_for(calls[2], 10)  # and nobody waits any more
    transport.close()
