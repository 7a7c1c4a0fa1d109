"""What tests say to guests, and what they wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sandpool.v1 import execution_pb2 as pb

from .site import Site


async def say(site: Site, vm_id: str, source: str) -> bytes:
    """What a cell prints, on a connection of its own."""
    async with site.guest(vm_id) as guest:
        outcome = await guest.code(source)
        assert outcome.error is None, outcome.error
        return outcome.stdout


async def shell(site: Site, vm_id: str, text: str) -> bytes:
    """What a command prints, on a connection of its own."""
    async with site.guest(vm_id) as guest:
        outcome = await guest.shell(text)
        assert outcome.ended is not None and outcome.ended.exit_code == 0, outcome.stderr
        return outcome.stdout


async def until_it_says(stream: AsyncIterator[pb.ExecutionEvent], text: bytes) -> None:
    """Read events up to some output."""
    async for event in stream:
        if event.HasField("output") and text in event.output.data:
            return
    raise AssertionError("the stream has ended")
