"""What session.proto promises, on a whole pool-manager."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from sandpool.v1 import session_pb2 as pb
from service_kit.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, SandpoolError

from .conftest import Control, failure


async def test_ensure_makes_a_session_once_and_says_all_of_it(control: Control) -> None:
    await control.create(ready_target=1, cooldown={"seconds": 7}, max_lifetime={"seconds": 70})
    made, found = await control.ensure(), await control.ensure()
    assert (made.binding.created, found.binding.created) == (True, False)
    assert made.session == found.session == await control.session()
    assert (made.session.cooldown.seconds, made.session.node_id) == (7, "node-1")
    assert made.session.expires_at.ToSeconds() - made.session.created_at.ToSeconds() == 70
    assert made.binding.epoch == made.session.epoch and made.session.vm_id in control.node.vms
    again = await control.ensure(expected_epoch=made.binding.epoch, allocation=pb.ALLOCATION_EXISTING_ONLY)
    assert again.session == made.session


async def test_hundred_callers_of_one_name_share_one_vm(control: Control) -> None:
    await control.create(ready_target=0, max_sessions=1)
    answers = await asyncio.gather(*(control.ensure() for _ in range(100)))
    assert len({answer.session.vm_id for answer in answers}) == 1
    assert sum(answer.binding.created for answer in answers) == 1


async def test_the_next_of_its_name_is_told_how_the_last_one_ended(control: Control) -> None:
    await control.create(ready_target=1)
    first = await control.ensure()
    assert await control.end()
    second = await control.ensure()
    assert second.binding.epoch > first.binding.epoch and second.session.vm_id != first.session.vm_id
    assert second.binding.previous.epoch == first.binding.epoch
    assert second.binding.previous.end_reason == pb.END_REASON_STOPPED
    assert not (await control.ensure()).binding.HasField("previous")
    for call in (control.ensure, control.session, control.end):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(expected_epoch=first.binding.epoch)  # type: ignore[operator]
        error = failure(caught)
        assert isinstance(error, FailedPrecondition) and error.reason == "SESSION_ENDED"


async def test_an_ended_epoch_says_why(control: Control) -> None:
    await control.create(ready_target=1)
    made = await control.ensure()
    control.node.lose(made.session.vm_id, pb.END_REASON_VM_LOST, "the process ended with 9")
    event = await control.happened("SESSION_ENDED", session="alice")
    assert (event.reason, event.detail, event.epoch) == ("VM_LOST", "the process ended with 9", made.binding.epoch)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.session(expected_epoch=made.binding.epoch)
    assert failure(caught).metadata == {"epoch": str(made.binding.epoch), "end_reason": "END_REASON_VM_LOST"}


async def test_a_node_of_a_later_version_may_have_other_reasons(control: Control) -> None:
    await control.create(ready_target=1)
    made = await control.ensure()
    control.node.lose(made.session.vm_id, 99, "moved to the moon")
    event = await control.happened("SESSION_ENDED", session="alice")
    assert (event.reason, event.detail) == ("VM_LOST", "moved to the moon")
    again = (await control.ensure()).binding
    assert (again.created, again.previous.end_reason) == (True, pb.END_REASON_VM_LOST)


@pytest.mark.parametrize(
    ("fields", "kind", "reason", "field"),
    [
        ({"pool": "nowhere"}, NotFound, "POOL_NOT_FOUND", "session.pool"),
        ({"pool": "No"}, InvalidArgument, "INVALID_FIELD", "session.pool"),
        ({"identifier": "a b"}, InvalidArgument, "INVALID_FIELD", "session.identifier"),
        ({"allocation": 9}, InvalidArgument, "INVALID_FIELD", "session.allocation"),
        ({"allocation": pb.ALLOCATION_EXISTING_ONLY}, NotFound, "SESSION_NOT_FOUND", "session.identifier"),
        ({"expected_epoch": 5}, FailedPrecondition, "SESSION_ENDED", "session.expected_epoch"),
    ],
)
async def test_ensure_refuses_and_names_the_field(
    control: Control, fields: dict[str, Any], kind: type[SandpoolError], reason: str, field: str
) -> None:
    await control.create(ready_target=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.ensure(**fields)
    error = failure(caught)
    assert (type(error), error.reason, error.field) == (kind, reason, field)
    assert control.node.creates == []


async def test_a_full_pool_says_when_to_come_again(control: Control) -> None:
    await control.create(ready_target=1, max_sessions=1)
    await control.ensure()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.ensure("bob")
    error = failure(caught)
    assert isinstance(error, ResourceExhausted) and (error.reason, error.retry_after_seconds) == ("MAX_SESSIONS", 1.0)
    full = await control.get()
    assert [condition.reason for condition in full.conditions] == ["MAX_SESSIONS"]
    await control.end()
    assert (await control.ensure("bob")).binding.created
    await control.end("bob")
    await control.until(lambda pool: not pool.conditions)


async def test_a_vm_that_cannot_be_made_is_said_with_its_cause(control: Control) -> None:
    control.node.refuse_create = ResourceExhausted("NODE_FULL", "no memory is left")
    await control.create(ready_target=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.ensure(timeout=1.0)
    error = failure(caught)
    assert (error.reason, error.retry_after_seconds) == ("NO_CAPACITY", 1.0) and "no memory is left" in error.message
    control.node.refuse_create = None
    assert (await control.ensure()).binding.created


async def test_sessions_are_listed_by_page(control: Control) -> None:
    await control.create(ready_target=3)
    names = sorted(["b", "a", "~", "Z", "a/b"])
    for name in names:
        await control.ensure(name)
    request, seen = pb.ListSessionsRequest(pool="p", page_size=2), []
    while True:
        page = await control.sessions.List(request)
        seen.append([session.identifier for session in page.sessions])
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [names[:2], names[2:4], names[4:]]
    for bad, field in (
        (pb.ListSessionsRequest(pool="p", page_size=1001), "page_size"),
        (pb.ListSessionsRequest(pool="q"), "pool"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.sessions.List(bad)
        assert failure(caught).field == field


async def test_stop_is_idempotent_and_the_vm_is_gone(control: Control) -> None:
    await control.create(ready_target=1)
    assert not await control.end()
    made = await control.ensure()
    assert await control.end(expected_epoch=made.binding.epoch) and made.session.vm_id not in control.node.vms
    assert not await control.end()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.session()
    assert failure(caught).reason == "SESSION_NOT_FOUND"


async def test_an_idle_session_ends_and_a_busy_one_does_not(control: Control) -> None:
    control.node.remaining_seconds = 0.05
    await control.create(ready_target=1, cooldown={"seconds": 1})
    await control.ensure()
    for _ in range(3):  # asked again and again, as soon as it may be idle
        await control.node.asked.acquire()
    assert (await control.session()).identifier == "alice"
    control.node.remaining_seconds = None
    assert (await control.happened("SESSION_ENDED")).reason == "IDLE"


async def test_a_session_ends_at_its_lifetime_whatever_it_does(control: Control) -> None:
    control.node.remaining_seconds = 100.0
    await control.create(ready_target=1, max_lifetime={"seconds": 1})
    await control.ensure()
    assert (await control.happened("SESSION_ENDED")).reason == "MAX_LIFETIME"


async def test_every_place_of_a_pool_can_be_had_at_once(control: Control) -> None:
    """None is counted twice while it is taken."""
    await control.create(ready_target=40, max_sessions=40)
    names = iter(range(40))

    async def one_after_another() -> None:
        for name in names:
            assert (await control.ensure(f"s{name}")).binding.created

    await asyncio.gather(*(one_after_another() for _ in range(8)))
    await control.until(lambda pool: (pool.counts.assigned, pool.counts.warm) == (40, 0))


async def test_sessions_of_which_no_node_answers_delay_no_other(control: Control) -> None:
    await control.create(ready_target=0, cooldown={"seconds": 1})
    made = await asyncio.gather(*(control.ensure(f"silent{number}") for number in range(64)))
    for answer in made:
        control.node.silent[answer.session.vm_id] = asyncio.Semaphore(0)
    await control.ensure("other")
    assert (await control.happened("SESSION_ENDED", session="other")).reason == "IDLE"
    assert len(control.node.vms) == 64
    for permits in control.node.silent.values():
        permits.release()
