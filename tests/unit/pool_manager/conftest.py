"""A whole pool-manager in this loop, as its entry point composes it, and a node beside it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from pool_manager.__main__ import main_async
from pool_manager.config import Config
from sandpool.pool.v1 import pool_pb2 as internal
from sandpool.pool.v1 import pool_pb2_grpc as internal_grpc
from sandpool.v1 import event_pb2, event_pb2_grpc, pool_pb2, pool_pb2_grpc, session_pb2, session_pb2_grpc
from service_kit import errors, rpc

from .node import Node

# Longer than anything here takes; what waits for it has failed.
WAIT_SECONDS = 30.0


@dataclass
class Control:
    """The pool-manager and its clients."""

    directory: Path
    node: Node
    channel: grpc.aio.Channel
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.pools: Any = pool_pb2_grpc.PoolServiceStub(self.channel)
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(self.channel)
        self.assignments: Any = internal_grpc.AssignmentServiceStub(self.channel)
        self.events: Any = event_pb2_grpc.EventServiceStub(self.channel)

    async def start(self) -> None:
        """Serve from what is in the store."""
        self.stopping = asyncio.Event()
        settings = Config((f"unix:{self.directory}/pm",), self.directory / "store.db", self.directory / "key")
        self.task = asyncio.create_task(main_async(settings, self.stopping))
        await self.pools.List(pool_pb2.ListPoolsRequest(), wait_for_ready=True)

    async def stop(self) -> None:
        """As SIGTERM does it."""
        if self.task is not None:
            self.stopping.set()
            await self.task
            self.task = None

    async def create(self, name: str = "p", **fields: Any) -> pool_pb2.Pool:
        """A pool, full."""
        spec = pool_pb2.PoolSpec(**fields)
        await self.pools.Create(pool_pb2.CreatePoolRequest(name=name, spec=spec))
        return await self.until(lambda pool: pool.counts.warm == pool.spec.ready_target, name)

    async def update(self, *paths: str, name: str = "p", **fields: Any) -> pool_pb2.Pool:
        """Some settings."""
        request = pool_pb2.UpdatePoolRequest(name=name, spec=pool_pb2.PoolSpec(**fields))
        request.update_mask.paths.extend(paths or fields)
        pool: pool_pb2.Pool = (await self.pools.Update(request)).pool
        return pool

    async def delete(self, name: str = "p", force: bool = False) -> None:
        """Begin to."""
        await self.pools.Delete(pool_pb2.DeletePoolRequest(name=name, force=force))

    async def get(self, name: str = "p") -> pool_pb2.Pool:
        """Now."""
        pool: pool_pb2.Pool = (await self.pools.Get(pool_pb2.GetPoolRequest(name=name))).pool
        return pool

    async def ensure(self, identifier: str = "alice", timeout: float | None = None, **fields: Any) -> Any:
        """A session of the pool."""
        ref = session_pb2.SessionRef(pool=fields.pop("pool", "p"), identifier=identifier, **fields)
        return await self.sessions.Ensure(session_pb2.EnsureSessionRequest(session=ref), timeout=timeout)

    async def session(self, identifier: str = "alice", **fields: Any) -> session_pb2.Session:
        """As it is now."""
        ref = session_pb2.SessionRef(pool="p", identifier=identifier, **fields)
        found: session_pb2.Session = (await self.sessions.Get(session_pb2.GetSessionRequest(session=ref))).session
        return found

    async def end(self, identifier: str = "alice", **fields: Any) -> bool:
        """Stop a session."""
        ref = session_pb2.SessionRef(pool="p", identifier=identifier, **fields)
        stopped: bool = (await self.sessions.Stop(session_pb2.StopSessionRequest(session=ref))).stopped
        return stopped

    async def acquire(self, identifier: str = "alice") -> internal.AcquireResponse:
        """As a scheduler."""
        ref = session_pb2.SessionRef(pool="p", identifier=identifier, allocation=session_pb2.ALLOCATION_ALLOCATE)
        answer: internal.AcquireResponse = await self.assignments.Acquire(internal.AcquireRequest(session=ref))
        return answer

    async def history(self, **filters: Any) -> list[event_pb2.Event]:
        """All that happened, oldest first."""
        chosen = event_pb2.EventFilter(**filters)
        request = event_pb2.ListEventsRequest(filter=chosen, ascending=True, page_size=1000)
        return list((await self.events.List(request)).events)

    async def until(self, true: Callable[[pool_pb2.Pool], bool], name: str = "p") -> pool_pb2.Pool:
        """Wait until something is true of a pool: looks at it after every event."""
        async with asyncio.timeout(WAIT_SECONDS):
            watch = self.events.Watch(event_pb2.WatchEventsRequest())
            try:
                async for _ in watch:
                    pool = await self.get(name)
                    if true(pool):
                        return pool
            finally:
                watch.cancel()
        raise AssertionError("the watch ended")

    async def happened(self, kind: str, **filters: Any) -> event_pb2.Event:
        """The first event of a type, when it comes."""
        chosen = event_pb2.EventFilter(**filters)
        async with asyncio.timeout(WAIT_SECONDS):
            watch = self.events.Watch(event_pb2.WatchEventsRequest(filter=chosen, after_sequence=0))
            try:
                async for response in watch:
                    for event in response.events:
                        if event.type == event_pb2.EventType.Value(f"EVENT_TYPE_{kind}"):
                            return event
            finally:
                watch.cancel()
        raise AssertionError("the watch ended")


def kinds(events: list[event_pb2.Event]) -> list[str]:
    """TYPE:REASON of each."""
    return [f"{event_pb2.EventType.Name(event.type).removeprefix('EVENT_TYPE_')}:{event.reason}" for event in events]


def failure(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> errors.SandpoolError:
    """The error in what pytest.raises caught."""
    return errors.from_rpc_error(caught.value)


@pytest_asyncio.fixture
async def control() -> AsyncIterator[Control]:
    """With one node that is ready."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as path:
        directory = Path(path)
        node = Node(f"unix:{directory}/node")
        async with rpc.open_channel(f"unix:{directory}/pm") as channel:
            made = Control(directory, node, channel)
            await node.start()
            await made.start()
            await node.register(channel)
            await made.happened("NODE_READY")
            yield made
            await made.stop()
        await node.stop()
