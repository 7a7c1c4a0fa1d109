"""The control plane alone: a real pool-manager process, and a node that answers every CreateVm at once."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.rows import Row, p50
from sandpool.node.v1 import node_pb2, node_pb2_grpc
from sandpool.pool.v1 import pool_pb2, pool_pb2_grpc
from sandpool.v1 import node_pb2 as public_node
from sandpool.v1 import pool_pb2 as public_pool
from sandpool.v1 import pool_pb2_grpc as public_pool_grpc
from sandpool.v1 import session_pb2
from service_kit import rpc, server

SEQUENTIAL, BURST, CONCURRENT = 300, 600, 32
HUGE = 1 << 60


class InstantNode(node_pb2_grpc.NodeAgentServiceServicer):
    """VMs exist as soon as they are asked for."""

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[node_pb2.WatchResponse]:  # noqa: N802
        """A snapshot without VMs, then heartbeats."""
        capacity = public_node.NodeCapacity(cpu_millis=HUGE, memory_bytes=HUGE, disk_bytes=HUGE)
        node = public_node.Node(node_id="bench", driver="instant", capacity=capacity)
        yield node_pb2.WatchResponse(snapshot=node_pb2.NodeSnapshot(node_id="bench", boot_id="b", node=node))
        while True:
            await asyncio.sleep(1)
            yield node_pb2.WatchResponse(heartbeat=node_pb2.Heartbeat())

    async def BuildTemplate(self, request: Any, context: Any) -> AsyncIterator[node_pb2.BuildTemplateResponse]:  # noqa: N802
        """There at once."""
        yield node_pb2.BuildTemplateResponse(template=node_pb2.Template(template_id="0" * 64))

    async def CreateVm(self, request: node_pb2.CreateVmRequest, context: Any) -> node_pb2.CreateVmResponse:  # noqa: N802
        """Ready at once."""
        return node_pb2.CreateVmResponse(vm=node_pb2.Vm(vm_id=request.vm_id, state=node_pb2.VM_STATE_READY))

    async def DestroyVm(self, request: Any, context: Any) -> node_pb2.DestroyVmResponse:  # noqa: N802
        """Gone at once."""
        return node_pb2.DestroyVmResponse(destroyed=True)


@asynccontextmanager
async def pool_manager(
    work: Path, vms: int, agent: InstantNode, tunnel_address: str = "127.0.0.1:1"
) -> AsyncIterator[tuple[grpc.aio.Channel, bytes]]:
    """A pool-manager process with so many warm VMs, and room for no more: nothing is refilled meanwhile.

    Its channel (it listens on work/pm), and the key that it signs capabilities with.
    """
    settings = f'listen = ["unix:{work}/pm"]\nstore = "{work}/store.db"\nkey = "{work}/key"\n'
    (work / "pm.toml").write_text(settings)
    with (work / "pm.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pool_manager", "--config", str(work / "pm.toml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    await process.stdout.readline()
    name = "sandpool.node.v1.NodeAgentService"
    add = {name: lambda grpc_server: node_pb2_grpc.add_NodeAgentServiceServicer_to_server(agent, grpc_server)}
    try:
        async with server.serve([f"unix:{work}/node"], add), rpc.open_channel(f"unix:{work}/pm") as channel:
            registry = pool_pb2_grpc.NodeRegistryServiceStub(channel)
            request = pool_pb2.RegisterRequest(
                node_id="bench", agent_address=f"unix:{work}/node", tunnel_address=tunnel_address
            )
            key = (await registry.Register(request)).capability_public_key
            pools = public_pool_grpc.PoolServiceStub(channel)
            spec = public_pool.PoolSpec(ready_target=min(vms, 1000), max_sessions=vms)
            await pools.Create(public_pool.CreatePoolRequest(name="bench", spec=spec))
            while True:
                pool = (await pools.Get(public_pool.GetPoolRequest(name="bench"))).pool
                if pool.counts.warm >= min(vms, 1000):
                    break
                await asyncio.sleep(0.1)
            yield channel, key
            process.terminate()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def acquire(identifier: str) -> pool_pb2.AcquireRequest:
    """Of a new session."""
    ref = session_pb2.SessionRef(pool="bench", identifier=identifier, allocation=session_pb2.ALLOCATION_ALLOCATE)
    return pool_pb2.AcquireRequest(session=ref)


@asynccontextmanager
async def echo(work: Path) -> AsyncIterator[Any]:
    """A call to a process that does nothing but answer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.echo", f"unix:{work}/echo"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        async with rpc.open_channel(f"unix:{work}/echo") as channel:
            yield channel.unary_unary("/bench.Echo/Echo")
    finally:
        process.terminate()
        await process.wait()


async def rows(work: Path) -> list[Row]:
    """acquire and acquire_rate. work is made. Each Acquire has its own echo and commit beside it: all three drift."""
    work.mkdir()
    calls, commits, times, failures = [], [], [], 0
    database = sqlite3.connect(work / "baseline.db", isolation_level=None)
    database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (a, b);")
    async with echo(work) as call, pool_manager(work, BURST + SEQUENTIAL, InstantNode()) as (channel, _):
        stub = pool_pb2_grpc.AssignmentServiceStub(channel)
        for number in range(SEQUENTIAL):
            begun = time.perf_counter()
            await call(b"x" * 100)
            echoed = time.perf_counter()
            database.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 100))
            committed = time.perf_counter()
            answer = await stub.Acquire(acquire(f"one-{number}"))
            times.append(time.perf_counter() - committed)
            calls.append(echoed - begun)
            commits.append(committed - echoed)
            failures += not answer.binding.created
        numbers = iter(range(BURST))

        async def worker() -> int:
            return sum([not (await stub.Acquire(acquire(f"many-{number}"))).binding.created for number in numbers])

        begun = time.perf_counter()
        lost = sum(await asyncio.gather(*(worker() for _ in range(CONCURRENT))))
        rate = BURST / (time.perf_counter() - begun)
    database.close()
    value, baseline = p50(times), p50(calls) + p50(commits)
    name = "one gRPC echo + one SQLite commit"
    return [
        Row("acquire", value, "ms", name, baseline, "at most 2x", value <= 2 * baseline, SEQUENTIAL, failures),
        Row("acquire_rate", rate, "1/s", "1,000/s", 1000, "at least 1,000/s", rate >= 1000, BURST, lost),
    ]
