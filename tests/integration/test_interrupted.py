"""What is cut off between a commit and what it makes true in memory: callers that leave, a disk, a node that goes."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing, suppress
from sqlite3 import connect
from typing import Any

import pytest

from pool_manager import fleet, node_link
from pool_manager.model import PROVISIONING, WARM, Vm
from pool_manager.pool_service import PoolService
from sandpool.v1 import pool_pb2 as pb
from service_kit.errors import Aborted, NotFound, Unavailable

from .in_process import LEAST_STEPS, Place, Running, leave_after, numbers_of_steps, open_place


def agree(place: Place, running: Running) -> bool:
    """Whether store and memory have the same pools."""
    with closing(connect(place.work / "store.db")) as database:
        rows = set(database.execute("SELECT name, spec, generation, deleting FROM pools"))
    pools = running.fleet.pools.values()
    return rows == {(pool.row.name, pool.row.spec, pool.row.generation, pool.row.deleting) for pool in pools}


async def leave_and_repeat(service: PoolService, steps: int, method: str, request: Any) -> bool:
    """A call whose caller leaves after so many steps, and the same call again; whether it was under way."""
    left = await leave_after(steps, asyncio.create_task(getattr(service, method)(request, None)))
    with suppress(Aborted, NotFound):  # the first one was faster, or is done just now
        await getattr(service, method)(request, None)
    return left


async def test_callers_that_leave_while_a_pool_is_written() -> None:
    async with open_place() as place, place.run() as running:
        service = PoolService(running.fleet, running.acquirer)
        for steps in numbers_of_steps():
            name = f"pool{steps}"
            create = pb.CreatePoolRequest(name=name, spec=pb.PoolSpec(ready_target=0))
            left = await leave_and_repeat(service, steps, "Create", create)
            assert agree(place, running)
            update = pb.UpdatePoolRequest(name=name, spec=pb.PoolSpec(max_sessions=7))
            update.update_mask.paths.append("max_sessions")
            left |= await leave_and_repeat(service, steps, "Update", update)
            assert agree(place, running) and running.fleet.pools[name].spec.max_sessions == 7
            left |= await leave_and_repeat(service, steps, "Delete", pb.DeletePoolRequest(name=name))
            while name in running.fleet.pools:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert agree(place, running)
            if not left and steps >= LEAST_STEPS:
                break


async def test_a_name_is_free_again_once_a_full_disk_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "STORE_RETRY_SECONDS", 0.01)
    async with open_place() as place, place.run() as running:
        service = PoolService(running.fleet, running.acquirer)
        remove, refused = running.store.remove_pool, asyncio.Event()

        async def refuse_once(*arguments: Any) -> None:
            if not refused.is_set():
                refused.set()
                raise Unavailable("STORE", "the store cannot write: full")
            await remove(*arguments)

        monkeypatch.setattr(running.store, "remove_pool", refuse_once)
        spec = pb.PoolSpec(ready_target=0)
        await service.Create(pb.CreatePoolRequest(name="pool", spec=spec), None)
        await service.Delete(pb.DeletePoolRequest(name="pool"), None)
        await refused.wait()
        while "pool" in running.fleet.pools:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert (await service.Create(pb.CreatePoolRequest(name="pool", spec=spec), None)).pool.generation == 1
        assert agree(place, running)


async def cut_for_good(place: Place, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the node's Watch, which is not begun again."""
    monkeypatch.setattr(node_link, "RETRY_SECONDS", 3600.0)
    place.node.cut()
    while running.fleet.links["memory"].ready:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def make_provisioning(place: Place, running: Running) -> Vm:
    """The one VM of a pool, which its node makes as soon as it is open."""
    place.node.open.clear()
    pool = await running.make_pool("pool", 1)
    while not place.node.vms:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    (vm,) = pool.vms.values()
    return vm


async def test_a_vm_whose_node_is_gone_when_it_is_written_down_as_warm_is_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_place() as place, place.run() as running:
        vm = await make_provisioning(place, running)
        gate = threading.Event()
        blocked = asyncio.create_task(running.store._do(lambda _: gate.wait()))
        place.node.open.set()
        while not vm.said_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert vm.state == PROVISIONING
        await cut_for_good(place, running, monkeypatch)
        gate.set()
        await blocked
        while vm.state != WARM:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not vm.confirmed and vm not in running.fleet.pools["pool"].warm


async def test_a_vm_that_is_made_when_nobody_watches_its_node_any_more_is_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_place() as place, place.run() as running:
        vm = await make_provisioning(place, running)
        await cut_for_good(place, running, monkeypatch)
        place.node.open.set()
        while vm.creating:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not vm.said_ready and not vm.confirmed and vm not in running.fleet.pools["pool"].warm


async def test_no_deadline_is_kept_of_what_has_ended() -> None:
    async with open_place() as place, place.run() as running:
        await running.make_pool("pool", 0)
        for number in range(5):
            binding = await running.acquire("pool", f"{number}")
            await running.fleet.destroy(binding.vm, 0)
        assert not place.node.vms and len(running.expiry._deadlines) == 0
