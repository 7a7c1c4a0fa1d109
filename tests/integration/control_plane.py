"""A real pool-manager process with one node of memory, killed and started again at will."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc

from sandpool.pool.v1 import pool_pb2, pool_pb2_grpc
from sandpool.v1 import pool_pb2 as public
from sandpool.v1 import pool_pb2_grpc as public_grpc
from sandpool.v1 import session_pb2, session_pb2_grpc
from service_kit import rpc

from .memory_node import MemoryNode, serve

CONCURRENT = 100


class ControlPlane:
    """Made by open_control_plane."""

    def __init__(self, work: Path, node: MemoryNode, channel: grpc.aio.Channel) -> None:
        self.work, self.node = work, node
        self.process: asyncio.subprocess.Process | None = None
        self.pools: public_grpc.PoolServiceAsyncStub = public_grpc.PoolServiceStub(channel)
        self.sessions: session_pb2_grpc.SessionServiceAsyncStub = session_pb2_grpc.SessionServiceStub(channel)
        self._assignment: pool_pb2_grpc.AssignmentServiceAsyncStub = pool_pb2_grpc.AssignmentServiceStub(channel)
        self._registry: pool_pb2_grpc.NodeRegistryServiceAsyncStub = pool_pb2_grpc.NodeRegistryServiceStub(channel)

    async def start(self, log: Path | None = None) -> None:
        """Until it is ready and knows the node."""
        with (log or self.work / "log").open("ab") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pool_manager", "--config", str(self.work / "settings.toml")),
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        assert self.process.stdout is not None
        assert (await self.process.stdout.readline()).startswith(b"ready pool-manager")
        address = f"unix:{self.work}/node"
        request = pool_pb2.RegisterRequest(node_id="memory", agent_address=address, tunnel_address="127.0.0.1:1")
        await self._registry.Register(request, wait_for_ready=True)

    async def kill(self) -> None:
        """As kill -9 does."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def make_pool(self, name: str, ready_target: int, max_sessions: int = 5000) -> None:
        """Of VMs that live for long."""
        spec = public.PoolSpec(ready_target=ready_target, max_sessions=max_sessions)
        await self.pools.Create(public.CreatePoolRequest(name=name, spec=spec), wait_for_ready=True)

    async def counts(self, name: str) -> public.PoolCounts:
        """Of a pool, now."""
        return (await self.pools.Get(public.GetPoolRequest(name=name), wait_for_ready=True)).pool.counts

    async def until_warm(self, name: str, count: int) -> None:
        """Exactly so many are warm and none is coming: the test's own time limit ends this."""
        while (counts := await self.counts(name)).warm != count or counts.provisioning:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def acquire(self, pool: str, identifier: str, timeout: float = 60.0) -> pool_pb2.AcquireResponse:
        """As a scheduler does."""
        allocate = session_pb2.ALLOCATION_ALLOCATE
        ref = session_pb2.SessionRef(pool=pool, identifier=identifier, allocation=allocate)
        return await self._assignment.Acquire(pool_pb2.AcquireRequest(session=ref), timeout=timeout)

    async def acquire_all(self, pool: str, count: int) -> list[session_pb2.SessionBinding]:
        """Sessions s0, s1, ... by callers at once."""
        numbers, bindings = iter(range(count)), []

        async def caller() -> None:
            for number in numbers:
                bindings.append((await self.acquire(pool, f"s{number}")).binding)

        await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
        return bindings

    def rows(self, query: str) -> list[Any]:
        """Of the store, as it is on disk."""
        with closing(sqlite3.connect(self.work / "store.db")) as database:
            return database.execute(query).fetchall()


@asynccontextmanager
async def open_control_plane(*, log: Path | None = None) -> AsyncIterator[ControlPlane]:
    """Running; gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    settings = f'listen = ["unix:{work}/pm"]\nstore = "{work}/store.db"\nkey = "{work}/key"\n'
    (work / "settings.toml").write_text(settings)
    try:
        async with serve(f"unix:{work}/node") as node, rpc.open_channel(f"unix:{work}/pm") as channel:
            plane = ControlPlane(work, node, channel)
            await plane.start(log)
            try:
                yield plane
            finally:
                await plane.kill()
    finally:
        shutil.rmtree(work)
