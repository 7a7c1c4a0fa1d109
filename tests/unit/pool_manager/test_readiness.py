"""The pool-manager as its own process: what it says while it has no node, and while its store cannot write."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sandpool.v1 import pool_pb2, pool_pb2_grpc
from service_kit import errors, pages, rpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Running:
    """The process and a channel to it."""

    pid: int
    channel: grpc.aio.Channel
    pages: str

    def watch(self, service: str) -> Any:
        """Of its health."""
        return health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest(service=service))

    async def dependencies(self) -> dict[str, tuple[bool, str]]:
        """As /readyz says."""
        body = json.loads((await pages.fetch(self.pages, "/readyz")).body)
        return {it["name"]: (it["ready"], it["detail"]) for it in body["dependencies"]}


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Without any node."""
    address, page = f"unix:{tmp_path}/pm", f"unix:{tmp_path}/page"
    (tmp_path / "c.toml").write_text(
        f'listen = ["{address}"]\nstore = "{tmp_path}/s.db"\nkey = "{tmp_path}/key"\nmetrics_listen = "{page}"\n'
    )
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pool_manager", "--config", str(tmp_path / "c.toml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    assert (await process.stdout.readline()).split()[:1] == [b"ready"]
    async with rpc.open_channel(address) as channel:
        yield Running(process.pid, channel, page)
        process.terminate()
        assert await process.wait() == 0


async def test_a_store_that_cannot_write_is_said_and_found_again(running: Running) -> None:
    watch = running.watch("sandpool.dependency.store")
    statuses = (answer.status async for answer in watch)
    while await anext(statuses) != SERVING:
        pass
    assert (await running.dependencies())["nodes"] == (False, "no node has registered")
    sessions = running.watch("sandpool.pool.v1.AssignmentService")
    assert (await sessions.read()).status == NOT_SERVING
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    stub = pool_pb2_grpc.PoolServiceStub(running.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Create(pool_pb2.CreatePoolRequest(name="a"))
    assert errors.from_rpc_error(caught.value).reason == "STORE"
    assert await anext(statuses) == NOT_SERVING
    ready, detail = (await running.dependencies())["store"]
    assert not ready and "cannot write" in detail
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await anext(statuses) == SERVING  # nobody else has written meanwhile
    assert (await running.dependencies())["store"] == (True, "")
    text = (await pages.fetch(running.pages, "/metrics")).body.decode()
    failed = next(line for line in text.splitlines() if line.startswith("sandpool_store_failed_commits_total"))
    assert float(failed.split()[1]) >= 1
    watch.cancel()
    sessions.cancel()
