"""A node that does not do what it is told, yet."""

from __future__ import annotations

import asyncio

from pool_manager.model import Pool
from sandpool.v1 import session_pb2

from .in_process import Running, open_place


async def until_warm(pool: Pool) -> None:
    while len(pool.warm) < pool.spec.ready_target:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def heard_again(running: Running) -> None:
    """Its next snapshot is there."""
    link = running.fleet.links["memory"]
    while link.ready:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    while not link.ready:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_a_vm_that_is_to_go_is_asked_for_until_it_is_gone_and_nobody_gets_it() -> None:
    async with open_place() as place, place.run() as running:
        pool = await running.make_pool("pool", 2)
        await until_warm(pool)
        place.node.willing = False
        pool.spec.ready_target = 0
        await running.change_pool(pool, spec=pool.spec.SerializeToString())
        await place.node.refused.wait()
        place.node.cut()
        await heard_again(running)  # and says that both are ready
        assert len(place.node.vms) == 2 and not pool.warm and not pool.stale
        place.node.willing = True
        while pool.vms:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not place.node.vms


async def test_sessions_of_a_deleted_pool_end_once_the_node_can_be_asked() -> None:
    async with open_place() as place, place.run() as running:
        pool = await running.make_pool("pool", 1)
        binding = await running.acquire("pool", "alice")
        place.node.willing = False
        await running.change_pool(pool, deleting=True)
        running.fleet.destroy_soon(binding.vm, session_pb2.END_REASON_POOL_DELETED)
        await place.node.refused.wait()
        place.node.willing = True
        while "pool" in running.fleet.pools:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not place.node.vms
