"""The scheduler as its own process: ready line, health, reflection, an absent pool-manager, SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc, pool_pb2, pool_pb2_grpc
from service_kit import rpc

from .conftest import failure, ref


async def test_it_serves_says_so_and_ends(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'listen = ["unix:{tmp_path}/s"]\npool_manager = "unix:{tmp_path}/absent"\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler", "--config", str(tmp_path / "c.toml")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == f"ready scheduler unix:{tmp_path}/s\n".encode()
    async with rpc.open_channel(f"unix:{tmp_path}/s") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service, serving in (
            ("", True),
            ("sandpool.v1.ExecutionService", False),
            ("sandpool.v1.NodeService", False),
            ("sandpool.dependency.pool-manager", False),
        ):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert (answer.status == health_pb2.HealthCheckResponse.SERVING) == serving
        executions: execution_pb2_grpc.ExecutionServiceAsyncStub = execution_pb2_grpc.ExecutionServiceStub(channel)
        pools: pool_pb2_grpc.PoolServiceAsyncStub = pool_pb2_grpc.PoolServiceStub(channel)
        cancel = pb.CancelRequest(session=ref(), execution_id="a")
        for call in (executions.Cancel(cancel), pools.Get(pool_pb2.GetPoolRequest(name="a"))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = failure(caught)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "POOL_MANAGER_UNREACHABLE")
    process.terminate()
    _, log = await process.communicate()
    assert process.returncode == 0 and b'"reason": "POOL_MANAGER_UNREACHABLE"' in log


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1\n", b"'colour'"),
        ('pool_manager = "unix:/absent"\nlisten = ["127.0.0.1:0"]\nmetrics_listen = "0.0.0.0:0"\n', b"0.0.0.0:0: only"),
    ],
)
async def test_a_bad_setting_is_named(tmp_path: Path, text: str, named: bytes) -> None:
    (tmp_path / "c.toml").write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler", "--config", str(tmp_path / "c.toml")), stderr=asyncio.subprocess.PIPE
    )
    _, log = await process.communicate()
    assert process.returncode == 1 and named in log
