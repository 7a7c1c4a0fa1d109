"""Guests that break the protocol, behind the real tunnel: their VM is ended, and the client is told so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc, file_pb2, file_pb2_grpc, session_pb2
from scheduler import session_call

from .conftest import Vm, World, failure, ref

STARTED = pb.ExecutionEvent(started=pb.ExecutionStarted(execution_id="a"))
ENDED = pb.ExecutionEvent(ended=pb.ExecutionEnded(exit_code=0))


def output(offset: int, data: bytes, position: int) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(output=pb.OutputChunk(stream=1, offset=offset, data=data), next_position=position)  # type: ignore[arg-type]


class Guest(execution_pb2_grpc.ExecutionServiceServicer):
    """Says what it was told to say."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.requests: list[Any] = []

    async def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.requests.append(request)
        for event in self.events:
            if isinstance(event, grpc.StatusCode):
                await context.abort(event, "secret \x07", (("sandpool-reason", "ODD"), ("set-cookie", "a")))
            yield event

    async def Get(self, request: pb.GetExecutionRequest, context: Any) -> pb.GetExecutionResponse:  # noqa: N802
        return pb.GetExecutionResponse(execution=pb.Execution(execution_id="other"))


class LostThenSealed(Guest):
    """Takes the first call, whose answer is lost; its session has ended as idle when the second one comes."""

    def __init__(self, world: World) -> None:
        super().__init__([])
        self.fleet = world.fleet

    async def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.requests.append(request)
        if len(self.requests) == 1:
            await asyncio.sleep(session_call.MIN_COOLDOWN_SECONDS)
            await context.abort(grpc.StatusCode.UNAVAILABLE)
        self.fleet.end(self.fleet.of("bad"), session_pb2.END_REASON_IDLE)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "sealed", (("sandpool-reason", "SEALED"),))
        yield STARTED


class Files(file_pb2_grpc.FileServiceServicer):
    """Says more of a file than was asked for."""

    async def Read(self, request: file_pb2.ReadFileRequest, context: Any) -> AsyncIterator[file_pb2.ReadFileResponse]:  # noqa: N802
        yield file_pb2.ReadFileResponse(info=file_pb2.ReadFileInfo(file=file_pb2.FileInfo(path="a")))
        yield file_pb2.ReadFileResponse(data=b"123456")


async def garbage(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"\x0a\x7f\x01"  # field 1, cut off


def add_garbage(server: grpc.aio.Server) -> None:
    handlers: dict[str, Any] = {"Execute": grpc.unary_stream_rpc_method_handler(garbage)}  # type: ignore[arg-type]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("sandpool.v1.ExecutionService", handlers),))


@asynccontextmanager
async def serving(world: World, guest: Guest | None) -> AsyncIterator[None]:
    """The guest (None: one that sends garbage) as the VM "bad"."""
    path = world.directory / "bad"
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if guest is None:
        add_garbage(server)
    else:
        execution_pb2_grpc.add_ExecutionServiceServicer_to_server(guest, server)
    file_pb2_grpc.add_FileServiceServicer_to_server(Files(), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    world.tunnel.know("bad", path)
    world.fleet.vms.append(Vm("bad"))
    try:
        yield
    finally:
        await server.stop(None)


async def refused(world: World, guest: Guest | None, call: Callable[[], Any]) -> None:
    async with serving(world, guest):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call()
    error = failure(caught)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_LOST")
    assert error.metadata == {"end_reason": "END_REASON_GUEST_PROTOCOL"}
    assert [(report.vm_id, report.reason) for report in world.fleet.reports] == [
        ("bad", session_pb2.END_REASON_GUEST_PROTOCOL)
    ]


@pytest.mark.parametrize(
    "events",
    [
        [STARTED, output(1, b"x", 1)],
        [STARTED, output(0, b"x", 1), output(0, b"x", 2)],
        [STARTED, ENDED, ENDED],
        [STARTED, STARTED],
        [STARTED],
        [ENDED],
        [],
        [pb.ExecutionEvent(started=pb.ExecutionStarted(execution_id="b"))],
        [STARTED, output(0, b"x" * 262_145, 262_145)],
        [STARTED, pb.ExecutionEvent()],
    ],
)
async def test_a_stream_that_breaks_a_rule_ends_the_vm(world: World, events: list[Any]) -> None:
    guest = Guest(events)
    await refused(world, guest, lambda: gather_all(world.executions.Execute(world.shell("x", execution_id="a"))))
    assert not guest.requests[0].HasField("session")


async def test_a_violation_is_reported_until_it_is_heard(world: World) -> None:
    world.fleet.unheard = 1
    async with serving(world, Guest([ENDED])):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gather_all(world.executions.Execute(world.shell("x", execution_id="a")))
    assert failure(caught).reason == "SESSION_LOST"
    assert len(world.fleet.reports) == 2
    assert world.fleet.of("bad").end_reason == session_pb2.END_REASON_GUEST_PROTOCOL


async def gather_all(call: Any) -> None:
    async for _ in call:
        pass


async def test_bytes_that_are_no_event_end_the_vm(world: World) -> None:
    await refused(world, None, lambda: gather_all(world.executions.Execute(world.shell("x", execution_id="a"))))


async def test_an_answer_about_another_execution_ends_the_vm(world: World) -> None:
    request = pb.GetExecutionRequest(session=ref(allocation=session_pb2.ALLOCATION_ALLOCATE), execution_id="a")
    await refused(world, Guest([]), lambda: world.executions.Get(request))


async def test_more_of_a_file_than_was_asked_for_ends_the_vm(world: World) -> None:
    session = ref(allocation=session_pb2.ALLOCATION_ALLOCATE)
    request = file_pb2.ReadFileRequest(session=session, path="a", length=5)
    await refused(world, Guest([]), lambda: gather_all(world.files.Read(request)))


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OK])
async def test_a_refusal_that_no_guest_may_give_is_internal(world: World, code: grpc.StatusCode) -> None:
    events = [STARTED, grpc.StatusCode.UNAUTHENTICATED] if code is grpc.StatusCode.OK else [code]
    async with serving(world, Guest(events)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gather_all(world.executions.Execute(world.shell("x", execution_id="a")))
    error = failure(caught)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "GUEST_ERROR") and "secret" not in error.message
    trailers = dict(caught.value.trailing_metadata() or ())
    assert "set-cookie" not in trailers and "sandpool-reason" not in trailers


async def test_a_guest_that_always_breaks_off_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_call, "RETRY_SECONDS", (0.0, 0.0))
    guest = Guest([grpc.StatusCode.UNAVAILABLE])
    async with serving(world, guest):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gather_all(world.executions.Execute(world.shell("x", execution_id="a")))
    error = failure(caught)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "CONNECTION_LOST")
    assert [request.execution_id for request in guest.requests] == ["a", "a", "a"]


async def test_what_may_have_run_does_not_run_in_the_next_session(world: World) -> None:
    guest = LostThenSealed(world)
    async with serving(world, guest):
        await world.add_guest("next")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gather_all(world.executions.Execute(world.shell("x", execution_id="a")))
    error = failure(caught)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_LOST")
    assert error.metadata == {"end_reason": "END_REASON_IDLE"} and len(guest.requests) == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED])
async def test_an_execution_that_has_ended_has_ended(world: World, code: grpc.StatusCode) -> None:
    async with serving(world, Guest([STARTED, ENDED, code])):
        events = [event async for event in world.executions.Execute(world.shell("x", execution_id="a"))]
    assert events[-1].HasField("ended") and not world.fleet.reports


async def test_what_the_guest_says_of_the_session_is_replaced(world: World) -> None:
    lie = pb.ExecutionEvent(
        started=pb.ExecutionStarted(execution_id="a", session=session_pb2.SessionBinding(epoch=99, vm_id="other"))
    )
    async with serving(world, Guest([lie, ENDED])):
        events = [event async for event in world.executions.Execute(world.shell("x", execution_id="a"))]
    assert (events[0].started.session.epoch, events[0].started.session.vm_id) == (1, "bad")
