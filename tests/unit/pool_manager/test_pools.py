"""What pool.proto promises, on a whole pool-manager."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from sandpool.v1 import pool_pb2 as pb
from sandpool.v1 import session_pb2
from service_kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    from_rpc_error,
)

from .conftest import Control, failure, kinds

MIB = 1 << 20


def vcpus(count: int) -> pb.Resources:
    """Of another template."""
    return pb.Resources(vcpus=count)


def counts(pool: pb.Pool) -> tuple[int, int]:
    """What is ready and what is in use."""
    return pool.counts.warm, pool.counts.assigned


# -- create ------------------------------------------------------------------------------------------------------------


async def test_create_is_idempotent_with_identical_settings_only(control: Control) -> None:
    made = await control.create(ready_target=1)
    assert (made.generation, made.state) == (1, pb.POOL_STATE_ACTIVE)
    again = await control.pools.Create(pb.CreatePoolRequest(name="p", spec=pb.PoolSpec(ready_target=1)))
    assert again.pool.created_at == made.created_at
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.pools.Create(pb.CreatePoolRequest(name="p", spec=pb.PoolSpec(ready_target=2)))
    assert isinstance(failure(caught), AlreadyExists) and failure(caught).reason == "POOL_EXISTS"


async def test_of_two_creates_at_once_one_wins_and_the_other_hears_of_it(control: Control) -> None:
    requests = [pb.CreatePoolRequest(name="p", spec=pb.PoolSpec(max_sessions=n, ready_target=0)) for n in (7, 8, 8)]
    answers = await asyncio.gather(*map(control.pools.Create, requests), return_exceptions=True)
    won = [answer.pool.spec.max_sessions for answer in answers if not isinstance(answer, BaseException)]
    assert len(won) in (1, 2) and set(won) == {(await control.get()).spec.max_sessions}
    assert kinds(await control.history(pool="p")) == ["POOL_CREATED:REQUESTED"]


async def test_the_settings_reach_the_node(control: Control) -> None:
    resources = pb.Resources(vcpus=3, memory_bytes=300 * MIB, disk_bytes=400 * MIB, max_processes=77)
    await control.create(
        ready_target=1, resources=resources, max_lifetime={"seconds": 30 * 86400}, background_is_activity=False
    )
    (request,) = control.node.creates
    assert request.resources == resources and request.background_is_activity is False
    assert request.max_lifetime.seconds > 30 * 86400
    (built,) = control.node.builds
    assert (built.source.builtin, built.resources.vcpus) == ("python", 3)


async def test_pools_are_listed_by_page(control: Control) -> None:
    for name in ("b", "a", "c"):
        await control.create(name, ready_target=0)
    page = await control.pools.List(pb.ListPoolsRequest(page_size=2))
    rest = await control.pools.List(pb.ListPoolsRequest(page_size=2, page_token=page.next_page_token))
    assert [pool.name for pool in (*page.pools, *rest.pools)] == ["a", "b", "c"] and not rest.next_page_token


# -- update ------------------------------------------------------------------------------------------------------------


async def test_an_update_replaces_warm_vms_one_by_one_and_keeps_sessions(control: Control) -> None:
    await control.create(ready_target=3)
    session = (await control.ensure()).session
    await control.until(lambda pool: pool.counts.warm == 3)
    old = set(control.node.vms)
    control.node.permits = asyncio.Semaphore(0)
    updated = await control.update("resources.vcpus", resources=vcpus(2))
    assert (updated.generation, counts(updated)) == (2, (3, 1))
    for done in range(1, 4):
        control.node.permits.release()
        # Old ones go only as new ones become ready.
        pool = await control.until(lambda _: sum(vm_id not in old for vm_id in control.node.vms) == done)  # noqa: B023
        assert pool.counts.warm >= 3
    control.node.permits = None
    await control.until(lambda pool: counts(pool) == (3, 1) and len(control.node.vms) == 4)
    assert old & set(control.node.vms) == {session.vm_id} and (await control.session()) == session
    assert {vm.template_id for vm in control.node.vms.values() if vm.vm_id not in old} == {f"{2:064x}"}
    assert {request.reason for request in control.node.destroys} == {session_pb2.END_REASON_SUPERSEDED}


async def test_warm_vms_are_never_fewer_while_new_ones_are_made(control: Control) -> None:
    """Every moment, as the store tells it."""
    await control.create(ready_target=4)
    await control.update("resources.vcpus", resources=vcpus(2))
    await control.until(lambda pool: pool.counts.warm == 4 and len(control.node.creates) == 8)
    while any(vm.template_id == f"{1:064x}" for vm in control.node.vms.values()):
        await control.node.asked.acquire()
    warm = 0
    for kind in kinds(await control.history(pool="p")):
        warm += kind.startswith("VM_WARM")
        warm -= kind.startswith("VM_ENDED")
        assert warm >= 4 or kind != "VM_ENDED:SUPERSEDED"


async def test_an_old_vm_serves_as_long_as_there_is_no_new_one(control: Control) -> None:
    await control.create(ready_target=2)
    control.node.refuse_template = Internal("TEMPLATE_BUILD_FAILED", "pip has failed")
    await control.update("resources.vcpus", resources=vcpus(2))
    event = await control.happened("POOL_CONDITION_BEGAN")
    assert (event.reason, event.detail) == ("TEMPLATE_BUILD_FAILED", "NOT_PROGRESSING: pip has failed")
    pool = await control.get()
    assert [condition.reason for condition in pool.conditions] == ["TEMPLATE_BUILD_FAILED"]
    assert counts(pool) == (2, 0) and pool.counts.outdated == 2
    assert (await control.ensure()).binding.created
    control.node.refuse_template = None
    await control.update("resources.vcpus", resources=vcpus(3))
    await control.until(lambda pool: counts(pool) == (2, 1) and not pool.conditions and not pool.counts.outdated)
    assert (await control.happened("POOL_CONDITION_ENDED")).reason == "TEMPLATE_BUILD_FAILED"


async def test_an_update_without_room_says_so_and_goes_on_when_there_is(control: Control) -> None:
    await control.create(ready_target=1)
    control.node.refuse_create = ResourceExhausted("NODE_FULL", "no memory is left")
    await control.update("resources.vcpus", resources=vcpus(2))
    pool = await control.until(lambda pool: bool(pool.conditions))
    assert (pool.counts.warm, pool.conditions[0].reason) == (1, "NO_CAPACITY")
    control.node.refuse_create = None
    await control.until(lambda pool: not pool.conditions and pool.counts.warm == 1 and len(control.node.vms) == 1)
    assert {vm.template_id for vm in control.node.vms.values()} == {f"{2:064x}"}


async def test_a_vm_that_was_being_made_of_the_old_settings_is_told_apart(control: Control) -> None:
    control.node.permits = asyncio.Semaphore(0)
    await control.create(ready_target=0)
    await control.update(ready_target=1)
    await control.node.begun.acquire()
    await control.update("resources.vcpus", resources=vcpus(2))
    control.node.permits = None
    await control.node.begun.acquire()
    first, second = control.node.creates
    assert (first.resources.vcpus, second.resources.vcpus) == (1, 2) and first.template_id != second.template_id


async def test_the_target_takes_effect_at_once(control: Control) -> None:
    await control.create(ready_target=1)
    assert (await control.update(ready_target=4)).generation == 1
    await control.until(lambda pool: pool.counts.warm == 4)
    await control.update(ready_target=1)
    await control.until(lambda pool: pool.counts.warm == 1)
    assert len(control.node.vms) == 1


async def test_fewer_sessions_end_none_and_keep_nothing_warm_for_nobody(control: Control) -> None:
    await control.create(ready_target=2, max_sessions=4)
    for name in ("a", "b", "c"):
        await control.ensure(name)
    await control.until(lambda pool: counts(pool) == (1, 3))  # there is room for one more
    await control.update(max_sessions=2)
    await control.until(lambda pool: counts(pool) == (0, 3))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.ensure("d")
    assert failure(caught).reason == "MAX_SESSIONS"
    await control.end("a")
    await control.end("b")
    await control.until(lambda pool: counts(pool) == (1, 1))
    assert (await control.ensure("d")).binding.created


async def test_a_session_keeps_what_it_began_with(control: Control) -> None:
    await control.create(ready_target=1, cooldown={"seconds": 100}, max_lifetime={"seconds": 1000})
    before = (await control.ensure("before")).session
    updated = await control.update(cooldown={"seconds": 50}, max_lifetime={"seconds": 500})
    assert updated.generation == 1
    after = (await control.ensure("after")).session
    assert await control.session("before") == before
    assert (before.cooldown.seconds, after.cooldown.seconds) == (100, 50)
    assert after.expires_at.ToSeconds() - after.created_at.ToSeconds() == 500


async def test_a_longer_life_needs_other_vms(control: Control) -> None:
    """Nodes end VMs at the lifetime that they were made with."""
    await control.create(ready_target=1, max_lifetime={"seconds": 1000})
    assert (await control.update(max_lifetime={"seconds": 100_000})).generation == 2
    await control.until(
        lambda pool: pool.counts.warm == 1 and len(control.node.vms) == 1 and len(control.node.creates) == 2
    )
    made = (await control.ensure()).session
    (request,) = (request for request in control.node.creates if request.vm_id == made.vm_id)
    assert request.max_lifetime.seconds >= 100_000


async def test_an_update_of_another_generation_is_refused(control: Control) -> None:
    await control.create(ready_target=0)
    request = pb.UpdatePoolRequest(name="p", spec=pb.PoolSpec(ready_target=1), expected_generation=2)
    request.update_mask.paths.append("ready_target")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.pools.Update(request)
    assert isinstance(failure(caught), Aborted) and failure(caught).reason == "GENERATION_CHANGED"
    assert (await control.get()).spec.ready_target == 0


async def test_nothing_is_lost_between_updates_at_once(control: Control) -> None:
    await control.create(ready_target=0)
    updates = [control.update(max_sessions=7), control.update(cooldown={"seconds": 9})]
    done = await asyncio.gather(*updates, return_exceptions=True)
    lost = [error for error in done if isinstance(error, grpc.aio.AioRpcError)]
    spec = (await control.get()).spec
    if lost:  # said so, and not overwritten
        assert [from_rpc_error(error).reason for error in lost] == ["POOL_CHANGED"]
    assert (spec.max_sessions == 7) + (spec.cooldown.seconds == 9) == 2 - len(lost)


# -- delete ------------------------------------------------------------------------------------------------------------


async def test_a_pool_in_use_goes_by_force_only(control: Control) -> None:
    await control.create(ready_target=1)
    made = await control.ensure()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.delete()
    assert isinstance(failure(caught), FailedPrecondition) and failure(caught).reason == "POOL_IN_USE"
    assert (await control.ensure()).session == made.session
    await control.delete(force=True)
    await control.happened("POOL_REMOVED", pool="p")
    assert control.node.vms == {}
    ended = [event for event in await control.history(session="alice") if event.reason == "POOL_DELETED"]
    assert [event.vm_id for event in ended] == [made.session.vm_id]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.delete()
    assert isinstance(failure(caught), NotFound)


async def test_a_name_is_free_again_once_the_last_vm_is_gone(control: Control) -> None:
    await control.create(ready_target=1)
    old = (await control.ensure()).binding.epoch
    await control.node.stop()
    await control.happened("NODE_UNREACHABLE")
    await control.delete(force=True)
    await control.delete()  # again
    assert (await control.get()).state == pb.POOL_STATE_DELETING
    attempts: list[Any] = [
        control.pools.Create(pb.CreatePoolRequest(name="p")),
        control.update(ready_target=1),
        control.ensure("bob"),
    ]
    for attempt in attempts:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await attempt
        assert failure(caught).reason == "POOL_DELETING"
    await control.node.start()
    await control.happened("POOL_REMOVED", pool="p")
    again = await control.create(ready_target=1)
    assert (again.generation, again.state, counts(again)) == (1, pb.POOL_STATE_ACTIVE, (1, 0))
    new = await control.ensure()
    assert new.binding.epoch > old and not new.binding.HasField("previous")


async def test_callers_that_wait_are_told_that_the_pool_goes(control: Control) -> None:
    control.node.permits = asyncio.Semaphore(0)
    await control.create(ready_target=0)
    waiting = asyncio.ensure_future(control.ensure())
    await control.node.begun.acquire()
    await control.delete()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await waiting
    assert failure(caught).reason == "POOL_DELETING"
    control.node.permits.release()
    await control.happened("POOL_REMOVED", pool="p")
    assert control.node.vms == {}


async def test_a_pool_and_a_session_at_once_are_one_or_the_other(control: Control) -> None:
    """A session that begins while its pool is deleted is refused, or makes the delete be."""
    for number in range(20):
        name = f"p{number}"
        await control.create(name, ready_target=1)
        begun, deleted = await asyncio.gather(control.ensure(pool=name), control.delete(name), return_exceptions=True)
        assert isinstance(begun, BaseException) != isinstance(deleted, BaseException)
        if isinstance(deleted, BaseException):
            await control.delete(name, force=True)
        await control.happened("POOL_REMOVED", pool=name)
    assert control.node.vms == {}


async def test_a_delete_is_finished_after_a_restart(control: Control) -> None:
    await control.create(ready_target=1)
    await control.create("empty", ready_target=0)
    await control.ensure()
    await control.node.stop()
    await control.happened("NODE_UNREACHABLE")
    await control.delete(force=True)
    await control.stop()
    await control.start()
    await control.node.start()
    await control.happened("POOL_REMOVED", pool="p")
    assert control.node.vms == {} and (await control.get("empty")).state == pb.POOL_STATE_ACTIVE


async def test_a_pool_of_the_name_of_one_that_paused_does_not_wait_for_its_timer(control: Control) -> None:
    def paused(pool: pb.Pool) -> bool:
        return "TEMPLATE_BUILD_FAILED" in [condition.reason for condition in pool.conditions]

    control.node.refuse_template = Internal("TEMPLATE_BUILD_FAILED", "pip has failed")
    request = pb.CreatePoolRequest(name="p", spec=pb.PoolSpec(ready_target=1))
    await control.pools.Create(request)
    await control.until(paused)
    await control.delete()
    await control.happened("POOL_REMOVED", pool="p")
    await control.pools.Create(request)
    await control.until(paused)
    control.node.refuse_template = None
    await control.until(lambda pool: pool.counts.warm == 1)
