"""What hostile guests answer their node agent."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import pool_pb2, session_pb2

from .conftest import failure
from .stack import Stack, duration

pytestmark = pytest.mark.asyncio(loop_scope="package")

NOT_PROGRESSING = pool_pb2.POOL_CONDITION_TYPE_NOT_PROGRESSING
UNPREPARED = [
    *("prepare-no-sample", "prepare-short-sample", "prepare-many", "prepare-unparsable", "prepare-huge-message"),
    *("prepare-endless-headers", "prepare-endless-trailers", "prepare-status", "prepare-reset", "prepare-bomb"),
    *("prepare-silence", "mute"),
]
# How a session ends that nothing but its guest's answers to Seal could end, and MAX_LIFETIME.
SEALS = {
    "seal-idle": "IDLE",
    "seal-busy": "MAX_LIFETIME",
    "seal-busy-for-ever": "MAX_LIFETIME",
    "seal-busy-never": "MAX_LIFETIME",
    "seal-busy-nonsense": "MAX_LIFETIME",
    "seal-unparsable": "GUEST_PROTOCOL",
    "seal-huge-message": "GUEST_PROTOCOL",
    "seal-endless-headers": "GUEST_PROTOCOL",
    "seal-endless-trailers": "GUEST_PROTOCOL",
    "seal-bomb": "GUEST_PROTOCOL",
    "seal-status": "GUEST_PROTOCOL",
    "seal-silence": "UNRESPONSIVE",
    "seal-stall": "UNRESPONSIVE",
}


async def delete(stack: Stack, name: str) -> None:
    """With all that lives in it."""
    await stack.pools.Delete(pool_pb2.DeletePoolRequest(name=name, force=True))


async def test_a_clone_that_proves_nothing_serves_nobody(stack: Stack) -> None:
    outcomes = await asyncio.gather(*(_outcome(stack, name) for name in UNPREPARED))
    assert dict(zip(UNPREPARED, outcomes, strict=True)) == dict.fromkeys(UNPREPARED, ({"PREPARE_FAILED"}, 0))


async def _outcome(stack: Stack, name: str) -> tuple[set[str], int]:
    await stack.make_pool(name, name)
    request = session_pb2.EnsureSessionRequest(session=session_pb2.SessionRef(pool=name, identifier="a"))
    waiting = asyncio.create_task(failure(stack.sessions.Ensure(request)))
    reasons: set[str] = set()
    while not reasons and not waiting.done():
        await asyncio.sleep(0.1)
        pool = (await stack.pools.Get(pool_pb2.GetPoolRequest(name=name))).pool
        reasons = {condition.reason for condition in pool.conditions if condition.type == NOT_PROGRESSING}
    await delete(stack, name)
    assert (await waiting).reason in ("NO_CAPACITY", "POOL_DELETING")
    return reasons, pool.counts.warm + pool.counts.assigned


async def test_two_clones_with_the_same_random_numbers(stack: Stack) -> None:
    name = "prepare-same"
    await stack.make_pool(name, name)
    await stack.sessions.Ensure(
        session_pb2.EnsureSessionRequest(session=session_pb2.SessionRef(pool=name, identifier="a"))
    )
    second = session_pb2.EnsureSessionRequest(session=session_pb2.SessionRef(pool=name, identifier="b"))
    assert (await failure(stack.sessions.Ensure(second, timeout=3))).reason in ("NO_CAPACITY", "DEADLINE_EXCEEDED")
    await delete(stack, name)


async def test_no_answer_to_seal_keeps_a_vm(stack: Stack) -> None:
    ended = await asyncio.gather(*(_end_of(stack, name) for name in SEALS))
    assert dict(zip(SEALS, ended, strict=True)) == SEALS


async def _end_of(stack: Stack, name: str) -> str:
    await stack.make_pool(name, name, cooldown=duration(1), max_lifetime=duration(8))
    session = session_pb2.SessionRef(pool=name, identifier="a")
    error = await failure(
        stack.executions.Execute(pb.ExecuteRequest(session=session, code=pb.Code(source="silence")), timeout=60)
    )
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_LOST"), (name, error)
    await delete(stack, name)
    return error.metadata["end_reason"].removeprefix("END_REASON_")
