"""A pool-manager inside of the test, as its composition root makes it: for steps of the event loop, and clocks."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pool_manager import happened
from pool_manager.__main__ import compose
from pool_manager.acquire import Acquirer, Binding
from pool_manager.clock import Clock
from pool_manager.expiry import Expiry
from pool_manager.fleet import Fleet
from pool_manager.model import Pool
from pool_manager.permissions import Permissions
from pool_manager.pool_spec import complete
from pool_manager.sqlite_store import SqliteStore
from pool_manager.store import NodeRow, PoolRow
from sandpool.v1 import pool_pb2, session_pb2
from service_kit import boot

from .memory_node import MemoryNode, serve

BOOT = "this boot"
# Tried in any case: a call that is done within few steps once, as its thread was fast, is not the next time.
LEAST_STEPS = 20


@dataclass(frozen=True)
class Running:
    """One run of it."""

    fleet: Fleet
    acquirer: Acquirer
    expiry: Expiry
    store: SqliteStore

    async def make_pool(self, name: str, ready_target: int) -> Pool:
        """At most 1,000 sessions."""
        spec = complete(pool_pb2.PoolSpec(ready_target=ready_target, max_sessions=1000))
        row = PoolRow(name, spec.SerializeToString(), 1, False, 0.0)
        return await self.fleet.save_pool(row, None, happened.pool_created(name, 0.0))

    async def change_pool(self, pool: Pool, **fields: Any) -> Pool:
        """Fields of its row."""
        row = replace(pool.row, **fields)
        return await self.fleet.save_pool(row, pool.row, happened.pool_updated(pool.row, row, ["any"], 0.0))

    async def acquire(self, pool: str, identifier: str) -> Binding:
        """Without a deadline of the caller's."""
        allocate = session_pb2.ALLOCATION_ALLOCATE
        ref = session_pb2.SessionRef(pool=pool, identifier=identifier, allocation=allocate)
        return await self.acquirer.acquire(ref, None)


@dataclass(frozen=True)
class Place:
    """What outlives a run."""

    work: Path
    node: MemoryNode

    @asynccontextmanager
    async def run(self, clock_set_by: float = 0.0) -> AsyncIterator[Running]:
        """With a wall clock that is off by so many seconds; the node is known and ready."""

        def wall() -> float:
            return time.time() + clock_set_by

        store = SqliteStore(self.work / "store.db")
        offset = await store.clock_offset(BOOT, wall() - boot.boot_seconds())
        permissions = Permissions(Ed25519PrivateKey.generate())
        fleet, acquirer, expiry = compose(store, Clock(offset, boot.boot_seconds, wall), permissions)
        fleet.begin(await store.load())
        fleet.own(expiry.run())
        await fleet.register(NodeRow("memory", f"unix:{self.work}/node", "127.0.0.1:1", ""))
        while not fleet.links["memory"].ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        try:
            yield Running(fleet, acquirer, expiry, store)
        finally:
            await fleet.close()
            await store.close()


@asynccontextmanager
async def open_place() -> AsyncIterator[Place]:
    """With an empty store."""
    work = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    try:
        async with serve(f"unix:{work}/node") as node:
            yield Place(work, node)
    finally:
        shutil.rmtree(work)


def numbers_of_steps() -> Iterator[int]:
    """Every one at first, then ever fewer: what is awaited there are a thread and a node, not steps.

    Ends with its user, at the first call after LEAST_STEPS that was done before it could be left.
    """
    steps = 0
    while True:
        yield steps
        steps += 1 + steps // 20


async def leave_after(steps: int, call: asyncio.Task[Any]) -> bool:
    """Cancel the call after so many steps; whether it was still under way."""
    for _ in range(steps):
        if call.done():
            break
        await asyncio.sleep(0)
    left = call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    return left
