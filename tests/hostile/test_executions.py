"""Streams of hostile guests: who breaks a rule loses its VM, and nobody else anything."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import pytest

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import session_pb2

from .attacks import LATE, SECRET
from .conftest import failure
from .execution import VIOLATIONS
from .stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="package")
_numbers = itertools.count()

# Within these seconds an attack without an end has had its time.
SECONDS = 0.5
# Unbounded, these take more than MAX_GROWTH_BYTES within this.
LONG_SECONDS = {"late-continuations": 5.0}
PROTOCOL = [
    *VIOLATIONS,
    *("output-first", "other-id", "nothing", "open-results"),
    *("huge-message", "huge-message-unpaced", "bomb", "endless-headers", "endless-trailers", "many-headers"),
    *("empty-continuations", "reset", "bad-status"),
]
# Allowed as long as it goes on, or not to be told from a guest that has nothing to say.
ENDLESS = ["large-output", "empty-events", "tiny-events", "pings", "settings", "stall", "silence"]
# gRPC cannot say whether the guest or the way to it is at fault, or the status is one that no guest may give.
FAILED = ["status", "details", "no-status", "empty-data", "garbage", "not-grpc"]
BROKEN_OFF = ["refuse-stream", "go-away", "calm", "breaks-off"]


def ref() -> session_pb2.SessionRef:
    """A new session on a hostile VM."""
    return session_pb2.SessionRef(pool="bad", identifier=f"execution-{next(_numbers)}")


def request(session: session_pb2.SessionRef, name: str) -> pb.ExecuteRequest:
    """What makes the guest do it."""
    return pb.ExecuteRequest(session=session, code=pb.Code(source=name), execution_id="a")


async def stop(stack: Stack, session: session_pb2.SessionRef) -> bool:
    """End the session; whether it lived."""
    return bool((await stack.sessions.Stop(session_pb2.StopSessionRequest(session=session))).stopped)


@pytest.mark.parametrize("name", PROTOCOL)
async def test_a_broken_rule_ends_the_vm(stack: Stack, name: str) -> None:
    session = ref()
    error = await failure(stack.executions.Execute(request(session, name), timeout=30))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_LOST")
    assert error.metadata == {"end_reason": "END_REASON_GUEST_PROTOCOL"}
    assert await stack.end_reason(session) == "GUEST_PROTOCOL"
    await stop(stack, session)


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_does_not_end_is_ended_by_the_deadline(stack: Stack, name: str) -> None:
    session = ref()
    await stack.sessions.Ensure(session_pb2.EnsureSessionRequest(session=session))  # takes the time that it takes
    error = await failure(stack.executions.Execute(request(session, name), timeout=SECONDS))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await stop(stack, session)


@pytest.mark.parametrize("name", LATE)
async def test_frames_that_no_call_waits_for(stack: Stack, name: str) -> None:
    session = ref()
    events = [event async for event in stack.executions.Execute(request(session, name))]
    assert events[-1].HasField("ended")
    await failure(stack.executions.Execute(request(session, "silence"), timeout=LONG_SECONDS.get(name, SECONDS)))
    await stop(stack, session)


@pytest.mark.parametrize("name", FAILED)
async def test_what_may_be_the_links_fault_costs_the_call_alone(stack: Stack, name: str) -> None:
    session = ref()
    error = await failure(stack.executions.Execute(request(session, name), timeout=30))
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "GUEST_ERROR")
    assert await stop(stack, session)


async def test_a_guest_that_breaks_off_again_and_again_is_given_up(stack: Stack) -> None:
    sessions = [ref() for _ in BROKEN_OFF]
    calls = [stack.executions.Execute(request(one, name)) for one, name in zip(sessions, BROKEN_OFF, strict=True)]
    found = await asyncio.gather(*(failure(call) for call in calls))
    assert [(one.code, one.reason) for one in found] == [(grpc.StatusCode.ABORTED, "CONNECTION_LOST")] * len(found)
    assert all([await stop(stack, session) for session in sessions])


async def test_what_no_client_knows_is_dropped(stack: Stack) -> None:
    session = ref()
    events = [event async for event in stack.executions.Execute(request(session, "unknown-fields"))]
    assert [event.WhichOneof("event") for event in events] == ["started", "output", "ended"]
    assert not any(SECRET.encode() in event.SerializeToString() for event in events)
    assert events[0].started.session.epoch != 99
    assert await stop(stack, session)


async def test_a_refusal_is_cut_and_printable(stack: Stack) -> None:
    session = ref()
    error = await failure(stack.executions.Execute(request(session, "allowed-status")))
    assert (error.reason, error.message) == ("FILE_NOT_FOUND", "?" + "a" * 511)
    assert await stop(stack, session)


async def test_an_answer_about_another_execution(stack: Stack) -> None:
    session = ref()
    await stack.sessions.Ensure(session_pb2.EnsureSessionRequest(session=session))
    error = await failure(stack.executions.Get(pb.GetExecutionRequest(session=session, execution_id="a")))
    assert error.metadata == {"end_reason": "END_REASON_GUEST_PROTOCOL"}
