"""Health by dependency, over real gRPC: what is served while something is missing, and a peer that is followed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sandpool.v1 import node_pb2_grpc
from service_kit import health_service, rpc, server
from service_kit.health import Health

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAME = "sandpool.v1.NodeService"
ADD = {NAME: lambda it: node_pb2_grpc.add_NodeServiceServicer_to_server(node_pb2_grpc.NodeServiceServicer(), it)}


def request(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_a_service_serves_while_what_it_needs_is_there(tmp_path: Path) -> None:
    health = Health({"store": (NAME,), "other": ()})
    async with (
        server.serve([f"unix:{tmp_path}/s"], ADD, health) as serving,
        rpc.open_channel(serving.addresses[0]) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        async def statuses() -> list[int]:
            names = ("", NAME, "sandpool.dependency.store", "sandpool.dependency.other")
            return [(await stub.Check(request(name))).status for name in names]

        assert await statuses() == [SERVING, NOT_SERVING, NOT_SERVING, NOT_SERVING]
        watch = stub.Watch(request(NAME))
        assert (await watch.read()).status == NOT_SERVING
        health.set("store", True)
        assert (await watch.read()).status == SERVING
        assert await statuses() == [SERVING, SERVING, SERVING, NOT_SERVING]
        health.set("store", False, "the disk is full")
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(request("sandpool.dependency.unknown"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        unknown = stub.Watch(request("unknown"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        health.drain()  # a Watch that goes on would hold up the end of the process
        assert await watch.read() is grpc.aio.EOF
        assert await unknown.read() is grpc.aio.EOF
        assert await statuses() == [NOT_SERVING] * 4


def test_a_dependency_that_nobody_has_declared_cannot_be_set() -> None:
    with pytest.raises(KeyError):
        Health({"store": ()}).set("stroe", True)


async def test_a_peer_is_followed_through_its_end_and_its_return(tmp_path: Path) -> None:
    mine, theirs = Health({"peer": ()}), Health({"store": (NAME,)})
    seen = mine.watch("sandpool.dependency.peer")
    assert await anext(seen) is False
    async with rpc.open_channel(f"unix:{tmp_path}/s") as channel:
        following = asyncio.create_task(health_service.follow(channel, NAME, mine, "peer"))
        async with server.serve([f"unix:{tmp_path}/s"], ADD, theirs):
            theirs.set("store", True)
            assert await anext(seen) is True
            theirs.set("store", False, "gone")
            assert await anext(seen) is False
            assert "readyz" in mine.dependencies[0].detail
            theirs.set("store", True)
            assert await anext(seen) is True
        assert await anext(seen) is False
        async with server.serve([f"unix:{tmp_path}/s"], ADD):
            assert await anext(seen) is True
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
