"""What the scheduler says of a pool-manager that is not there, or goes away while it is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sandpool.pool.v1 import pool_pb2, pool_pb2_grpc
from scheduler.pool_manager import PoolManager
from service_kit import errors, rpc, server
from tests.unit.sdk.service import Link

from .conftest import ref


class Slow(pool_pb2_grpc.AssignmentServiceServicer):
    """Never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def Acquire(self, request: pool_pb2.AcquireRequest, context: object) -> pool_pb2.AcquireResponse:  # noqa: N802
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_call_that_was_never_sent_is_told_from_one_that_broke(tmp_path: Path) -> None:
    slow, link = Slow(), Link(f"{tmp_path}/far")
    name = "sandpool.pool.v1.AssignmentService"
    add = {name: lambda at: pool_pb2_grpc.add_AssignmentServiceServicer_to_server(slow, at)}
    async with (
        server.serve([f"unix:{tmp_path}/far"], add),
        await asyncio.start_unix_server(link.accept, tmp_path / "near") as near,
        rpc.open_channel(f"unix:{tmp_path}/near") as channel,
    ):
        pool_manager = PoolManager(channel)
        asking = asyncio.create_task(pool_manager.acquire(ref(), None))
        await slow.asked.wait()
        near.close()
        (tmp_path / "near").unlink()
        link.cut()
        with pytest.raises(errors.Unavailable) as caught:
            await asking
        assert caught.value.reason == "POOL_MANAGER_LOST"
        with pytest.raises(errors.Unavailable) as caught:
            await pool_manager.acquire(ref(), None)
        assert caught.value.reason == "POOL_MANAGER_UNREACHABLE"
