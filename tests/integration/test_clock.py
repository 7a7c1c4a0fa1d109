"""The wall clock is set by an hour while no pool-manager runs: what its successor reads of times is still true."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from pool_manager.store import SessionRow, VmRow

from .in_process import BOOT, Running, open_place

HOUR = 3600.0


async def bind(running: Running, identifier: str, seconds_left: float) -> str:
    """A session of which so much of its lifetime is left; its VM."""
    vm_id = f"vm-of-{identifier}"
    now = running.fleet.clock.now()
    await running.store.add_vm(VmRow(vm_id, "pool", 1, "memory", "t", "PROVISIONING", now))
    await running.store.set_warm(vm_id, running.fleet.clock.now())
    await running.store.assign(SessionRow("pool", identifier, 0, vm_id, now, now + seconds_left, HOUR))
    return vm_id


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_lifetime_ends_when_it_is_over_and_not_before(step: float) -> None:
    vms = []
    async with open_place() as place:
        async with place.run() as running:
            await running.make_pool("pool", 0)
            for identifier, seconds_left in (("early", HOUR / 2), ("over", -1.0)):
                vms.append(await bind(running, identifier, seconds_left))
        for vm_id in vms:
            place.node.appear(vm_id)
        async with place.run(clock_set_by=step) as running:
            while "vm-of-over" in running.fleet.vms:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            early = running.fleet.vms["vm-of-early"]  # its deadline was set first
            assert early.state == "ASSIGNED" and set(place.node.vms) == {"vm-of-early"}


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_session_that_begins_afterwards_has_its_whole_time(step: float) -> None:
    async with open_place() as place:
        async with place.run() as running:
            await running.make_pool("pool", 1)
            await running.acquire("pool", "before")
        async with place.run(clock_set_by=step) as running:
            before, after = await running.acquire("pool", "before"), await running.acquire("pool", "after")
            assert not before.created and after.created
            spec = running.fleet.pools["pool"].spec
            for binding in (before, after):
                row, lifetime = binding.session, spec.max_lifetime.ToNanoseconds() / 1e9
                assert row.expires_at - row.created_at == pytest.approx(lifetime)
                assert binding.vm.row.created_at <= row.created_at <= running.fleet.clock.now()


async def test_people_are_shown_the_wall_clock_as_it_is_now() -> None:
    async with open_place() as place:
        async with place.run() as running:
            shown = running.fleet.clock.shown(running.fleet.clock.now())
        async with place.run(clock_set_by=HOUR) as running:
            assert running.fleet.clock.shown(running.fleet.clock.now()) - shown > HOUR - 1


async def test_another_boot_begins_with_the_wall_clock() -> None:
    async with open_place() as place, place.run() as running:
        first = await running.store.clock_offset(BOOT, 17.0)
        assert first != 17.0 and await running.store.clock_offset(BOOT, 18.0) == first
        assert await running.store.clock_offset("another boot", 19.0) == 19.0


async def test_a_store_of_the_version_before_is_read() -> None:
    async with open_place() as place:
        async with place.run() as running:
            await running.make_pool("pool", 0)
        with closing(sqlite3.connect(place.work / "store.db")) as database:
            database.executescript("DROP TABLE clock; DROP TABLE events; PRAGMA user_version = 1;")
        async with place.run() as running:
            assert list(running.fleet.pools) == ["pool"]
