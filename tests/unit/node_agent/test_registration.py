"""A node that makes itself known: again and again, whatever stands in the way."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from node_agent.readiness import POOL_MANAGER, make_health
from node_agent.registration import register_for_ever
from sandpool.pool.v1 import pool_pb2 as pb
from sandpool.pool.v1 import pool_pb2_grpc
from service_kit import server
from service_kit.health import DEPENDENCY_PREFIX, Health


class Registry(pool_pb2_grpc.NodeRegistryServiceServicer):
    """What the node says it lacks is noted with every call; the second one makes room for the key."""

    def __init__(self, health: Health, keys: Path) -> None:
        self.health, self.keys = health, keys
        self.heard: list[str] = []

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:  # noqa: N802
        (detail,) = (one.detail for one in self.health.dependencies if one.name == POOL_MANAGER)
        self.heard.append(detail)
        if len(self.heard) == 2:
            self.keys.mkdir()
        return pb.RegisterResponse(capability_public_key=b"key")


async def test_a_key_that_cannot_be_written_is_said_and_tried_again() -> None:
    health = make_health()
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as path:
        keys, address = Path(path, "keys"), f"unix:{path}/pm"
        registry = Registry(health, keys)
        add = {
            "sandpool.pool.v1.NodeRegistryService": lambda at: pool_pb2_grpc.add_NodeRegistryServiceServicer_to_server(
                registry, at
            )
        }
        async with server.serve([address], add):
            task = asyncio.create_task(register_for_ever(address, pb.RegisterRequest(node_id="n"), keys, health))
            async with asyncio.timeout(30):
                async for known in health.watch(f"{DEPENDENCY_PREFIX}{POOL_MANAGER}"):
                    if known:
                        break
            assert (keys / "pool-manager.pub").read_bytes() == b"key"
            task.cancel()
            await asyncio.wait([task])
    assert registry.heard == ["not known yet", "its key cannot be written: No such file or directory"]
