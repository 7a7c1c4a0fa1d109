"""A caller that leaves after any number of steps of the event loop: no VM is lost, doubled, or held for nobody."""

from __future__ import annotations

import asyncio
from contextlib import closing
from sqlite3 import connect

import pytest

from pool_manager.acquire import Binding
from pool_manager.model import Pool, Vm

from .in_process import LEAST_STEPS, Place, Running, leave_after, numbers_of_steps, open_place


async def at_rest(pool: Pool) -> None:
    """Until nothing is under way: the test's own time limit ends this."""
    while pool.allocating or pool.coming() or len(pool.warm) != pool.spec.ready_target:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    while set(pool.vms.values()) != {*pool.warm, *pool.sessions.values()}:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def check(place: Place, running: Running, pool: Pool) -> None:
    """Fleet, store and node agree, and every VM has one use."""
    with closing(connect(place.work / "store.db")) as database:
        vms = dict(database.execute("SELECT vm_id, state FROM vms"))
        sessions = dict(database.execute("SELECT identifier, vm_id FROM sessions"))
    assert set(vms) == set(running.fleet.vms) == set(place.node.vms)
    assert sessions == {name: vm.row.vm_id for name, vm in pool.sessions.items()}
    assert len(set(sessions.values())) == len(sessions)
    assert vms == {vm.row.vm_id: vm.state for vm in pool.vms.values()}
    assert not pool.is_waiting()


@pytest.mark.parametrize("ready_target", [0, 2], ids=["cold", "warm"])
async def test_at_every_step(ready_target: int) -> None:
    async with open_place() as place, place.run() as running:
        pool = await running.make_pool("pool", ready_target)
        await at_rest(pool)
        for steps in numbers_of_steps():
            name = f"after{steps}"
            left = await leave_after(steps, asyncio.create_task(running.acquire("pool", name)))
            await at_rest(pool)
            check(place, running, pool)
            made = name in pool.sessions
            binding = await running.acquire("pool", name)  # whoever comes again finds what there is, or begins
            assert binding.created is not made
            await at_rest(pool)
            if not left and steps >= LEAST_STEPS:
                break


async def test_one_of_many_who_wait_for_the_same() -> None:
    async with open_place() as place, place.run() as running:
        pool = await running.make_pool("pool", 0)
        for steps in numbers_of_steps():
            calls = [asyncio.create_task(running.acquire("pool", f"after{steps}")) for _ in range(3)]
            left = await leave_after(steps, calls[0])
            others = await asyncio.gather(*calls[1:])
            assert len({binding.vm.row.vm_id for binding in others}) == 1
            await at_rest(pool)
            check(place, running, pool)
            if not left and steps >= LEAST_STEPS:
                break
        assert len(pool.sessions) == len(pool.vms)


async def test_all_who_wait_in_the_queue_of_a_node_that_is_slow() -> None:
    async with open_place() as place, place.run() as running:
        pool = await running.make_pool("pool", 0)
        for steps in range(40):
            place.node.open.clear()
            calls = [asyncio.create_task(running.acquire("pool", f"{steps}-{number}")) for number in range(3)]
            while pool.is_waiting() < 3 or len(place.node.vms) < len(pool.sessions) + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            place.node.open.set()
            await asyncio.gather(*(leave_after(steps + number, call) for number, call in enumerate(calls)))
            await at_rest(pool)
            check(place, running, pool)


async def test_in_the_very_step_in_which_the_vm_comes() -> None:
    async with open_place() as place, place.run() as running:
        pool = await running.make_pool("pool", 0)
        calls: list[asyncio.Task[Binding]] = []
        tell = running.fleet.on_warm

        def leave(vm: Vm) -> None:
            tell(vm)
            calls[-1].cancel()

        running.fleet.on_warm = leave
        for number in range(5):
            calls.append(asyncio.create_task(running.acquire("pool", f"{number}")))
            with pytest.raises(asyncio.CancelledError):
                await calls[-1]
            await at_rest(pool)
            check(place, running, pool)
        assert not pool.vms and len(place.node.asked) == 5
