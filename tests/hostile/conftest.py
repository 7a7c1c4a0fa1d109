"""One installation for all of these tests, and a neighbour whose session must not notice any of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import session_pb2
from service_kit import errors, rpc

from ..unit.scheduler.conftest import GuestProcess
from .attacks import SECRET
from .driver import HONEST
from .stack import Memory, Stack, running

# What a service may grow by while it is attacked. One that is not bounded passes this within seconds.
MAX_GROWTH_BYTES = 64 << 20


@dataclass
class Neighbour:
    """A session on an honest VM, counting up all the time."""

    stack: Stack
    count: int = 0
    vm_ids: set[str] = field(default_factory=set)
    counted: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until cancelled; any failure ends it."""
        session = session_pb2.SessionRef(pool="good", identifier="neighbour")
        await self._value(session, "n = 0")
        while True:
            assert await self._value(session, "n += 1; n") == str(self.count + 1)
            self.count += 1
            self.counted.set()

    async def _value(self, session: session_pb2.SessionRef, source: str) -> str:
        value = b""
        async for event in self.stack.executions.Execute(
            pb.ExecuteRequest(session=session, code=pb.Code(source=source))
        ):
            if event.HasField("started"):
                self.vm_ids.add(event.started.session.vm_id)
            elif event.HasField("result") and event.result.mime_type == "text/plain":
                value += event.result.data
        return value.decode()

    async def counts_once_more(self) -> None:
        """It is alive now. Raises what has ended it if it is not."""
        assert self.running is not None
        self.counted.clear()
        counting = asyncio.create_task(self.counted.wait())
        await asyncio.wait([counting, self.running], return_when=asyncio.FIRST_COMPLETED)
        counting.cancel()
        if self.running.done():
            self.running.result()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def stack() -> AsyncIterator[Stack]:
    """With the pools "bad" and "good"."""
    async with running() as it:
        await it.make_pool("bad", "hostile", ready_target=2)
        await it.make_pool("good", HONEST, ready_target=1)
        yield it
        log = it.log()
    for never in (SECRET, "rpc_failed", "task_failed", "Traceback", "never retrieved"):
        assert never not in log, log[log.index(never) - 1000 :][:3000]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def neighbour(stack: Stack) -> AsyncIterator[Neighbour]:
    """Counting."""
    it = Neighbour(stack)
    it.running = asyncio.create_task(it.run())
    yield it
    await it.counts_once_more()
    it.running.cancel()
    with suppress(asyncio.CancelledError):
        await it.running
    assert len(it.vm_ids) == 1


@pytest_asyncio.fixture(loop_scope="package", autouse=True)
async def undisturbed(stack: Stack, neighbour: Neighbour) -> AsyncIterator[None]:
    """No service grew or died, and the neighbour counts on."""
    await neighbour.counts_once_more()
    memory = Memory(stack.pids())
    yield
    await neighbour.counts_once_more()
    assert stack.pids() == memory.pids
    growth = memory.growth()
    assert max(growth.values()) < MAX_GROWTH_BYTES, growth


async def failure(call: Any) -> errors.SandpoolError:
    """How a call (unary, or a stream to its end) failed, with nothing of the guest in it."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        assert SECRET not in repr(error)
        return errors.from_rpc_error(error)
    raise AssertionError("the call succeeded")


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def guest() -> AsyncIterator[grpc.aio.Channel]:
    """To our guest agent, run natively, alive until the end."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        process = GuestProcess(Path(directory))
        await process.start()
        try:
            async with rpc.open_channel(f"unix:{process.socket}") as channel:
                yield channel
            assert process.process is not None and process.process.returncode is None
        finally:
            await process.stop()
