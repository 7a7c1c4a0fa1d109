"""Making this node known to the pool-manager, again and again: either may have restarted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import structlog

from node_agent.readiness import POOL_MANAGER
from sandpool.pool.v1 import pool_pb2 as pb
from sandpool.pool.v1 import pool_pb2_grpc
from service_kit import rpc
from service_kit.health import Health

log = structlog.get_logger("registration")

EVERY_SECONDS = 5.0
# A pool-manager that answers with an error does so at once.
RETRY_SECONDS = 0.5


async def register_for_ever(pool_manager: str, request: pb.RegisterRequest, keys: Path, health: Health) -> None:
    """Until cancelled. The pool-manager's public key goes to where the tunnel looks for keys."""
    async with rpc.open_channel(pool_manager) as channel:
        stub: pool_pb2_grpc.NodeRegistryServiceAsyncStub
        stub = pool_pb2_grpc.NodeRegistryServiceStub(channel)
        known = b""
        while True:
            try:
                answer = await stub.Register(request, wait_for_ready=True, timeout=EVERY_SECONDS * 2)
                if answer.capability_public_key != known:
                    _place(keys, answer.capability_public_key)
                    known = answer.capability_public_key
                    log.info("registered", node_id=request.node_id)
            except grpc.aio.AioRpcError as error:
                why = f"{pool_manager} answers {error.code().name}"
            except OSError as error:  # a full disk: whom that key has permitted the tunnel would refuse
                why = f"its key cannot be written: {error.strerror}"
            else:
                health.set(POOL_MANAGER, True)
                await asyncio.sleep(EVERY_SECONDS)
                continue
            health.set(POOL_MANAGER, False, why)
            log.warning("registration_failed", why=why)
            await asyncio.sleep(RETRY_SECONDS)


def _place(keys: Path, public_key: bytes) -> None:
    """Whole or not at all. Raises OSError."""
    part = keys / "pool-manager.part"
    part.write_bytes(public_key)
    part.rename(keys / "pool-manager.pub")
