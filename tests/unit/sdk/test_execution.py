"""An execution is run once and told whole, whatever the connection does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from sandpool import execution
from sandpool.errors import (
    ConnectionLost,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SessionEnded,
    SessionLost,
    Unavailable,
)
from sandpool.events import Display, Ended, Event, Gap, Started, Stdout
from sandpool.v1 import execution_pb2 as pb
from service_kit import errors

from .conftest import Connected
from .service import PICTURE, events


async def test_a_result_has_all_of_an_execution(connected: Connected) -> None:
    result = await connected.client.session().run("x")
    assert (result.stdout, result.stderr, result.value, result.images()) == ("grüße", "\ufffd!", "", [PICTURE])
    assert result.results == [{"image/png": PICTURE}, {"text/plain": b""}]
    assert (result.ok, result.exit_code, result.signal, result.killed) == (True, 0, None, None)
    assert (result.epoch, result.created, result.previous_end_reason) == (7, True, "IDLE")
    assert result.timings["total_us"] == 5
    assert result.execution_id == connected.service.requests[0].execution_id


async def test_a_service_of_a_later_version_may_have_other_reasons(connected: Connected) -> None:
    script = connected.service.script
    script[0].started.session.previous.end_reason = 77
    script[-1].ended.killed = 88
    lost = pb.OutputGap(stream=3, reason=99, begin=0, end=1)
    script.insert(1, pb.ExecutionEvent(gap=lost))
    session = connected.client.session()
    seen = [event async for event in session.stream("x")]
    ended = seen[-1]
    assert isinstance(seen[0], Started) and seen[0].previous_end_reason == "77"
    assert seen[1] == Gap("3", "99", 0, 1)
    assert isinstance(ended, Ended) and (ended.exit_code, ended.killed) == (None, "88")


async def test_sinks_get_the_bytes(connected: Connected) -> None:
    out, err = [], []
    await connected.client.session().run("x", on_stdout=out.append, on_stderr=err.append)
    assert (b"".join(out), b"".join(err)) == ("grüße".encode(), b"\xff!")


@pytest.mark.parametrize("at", range(8))
async def test_a_broken_connection_loses_and_repeats_nothing(connected: Connected, at: int) -> None:
    whole = [event async for event in connected.client.session().stream("x", execution_id="whole")]
    service, session = connected.service, connected.client.session()
    service.hold = at
    seen: list[Event] = []
    arrived = asyncio.Event()
    before = at - (at > 3)  # the first half of the picture is no event

    async def read() -> None:
        async for event in session.stream("x", execution_id="broken"):
            seen.append(event)
            if len(seen) == before:
                arrived.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        await service.holding.wait()
        if before:
            await arrived.wait()
        service.hold = None
        connected.link.cut()
        service.go.set()
    assert seen[1:] == whole[1:]
    assert isinstance(seen[0], Started) and sum(isinstance(event, Started) for event in seen) == 1
    assert service.runs == ["whole", "broken"]
    again = service.requests[2]
    if isinstance(again, pb.AttachRequest):
        assert again.session.expected_epoch == 7
    assert again.execution_id == "broken"


class Breaking:
    """A stub, and every call of it: some events, then the connection breaks; no other one comes about."""

    def __init__(self, first: str, *said: pb.ExecutionEvent) -> None:
        self.failures, self.said = [first], list(said)

    def Execute(self, _request: Any) -> Breaking:  # noqa: N802
        return self

    Attach = Execute

    async def __aiter__(self) -> AsyncIterator[pb.ExecutionEvent]:
        while self.said:
            yield self.said.pop(0)
        details = self.failures.pop() if self.failures else "failed to connect to all addresses; last error: no"
        raise AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details=details)

    def cancel(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize(
    ("stub", "kind"),
    [
        (Breaking("failed to connect to all addresses; last error: no"), Unavailable),
        (Breaking("Socket closed"), ConnectionLost),
        (Breaking("Socket closed", events()[0]), ConnectionLost),
    ],
    ids=["never sent", "sent", "started"],
)
async def test_what_may_have_run_is_not_unavailable(
    monkeypatch: pytest.MonkeyPatch, stub: Any, kind: type[Exception]
) -> None:
    monkeypatch.setattr(execution, "RESUME_SECONDS", 0.0)
    with pytest.raises(kind):
        async for _ in execution.stream(stub, pb.ExecuteRequest(execution_id="e"), lambda _: None):
            pass


async def test_what_may_have_run_is_not_repeated(connected: Connected) -> None:
    connected.service.refuse = errors.Aborted("SESSION_LOST", "gone", metadata={"end_reason": "END_REASON_VM_LOST"})
    with pytest.raises(SessionLost) as caught:
        await connected.client.session().run("x")
    assert (caught.value.end_reason, caught.value.code) == ("VM_LOST", "ABORTED")
    assert len(connected.service.requests) == 1


@pytest.mark.parametrize(
    ("said", "kind", "attributes"),
    [
        (errors.InvalidArgument("INVALID_FIELD", "no", field="env"), InvalidArgument, {"field": "env"}),
        (errors.NotFound("POOL_NOT_FOUND", "no"), NotFound, {"reason": "POOL_NOT_FOUND", "code": "NOT_FOUND"}),
        (
            errors.ResourceExhausted("NO_CAPACITY", "no", retry_after_seconds=1.5),
            ResourceExhausted,
            {"retry_after_seconds": 1.5},
        ),
        (
            errors.FailedPrecondition("SESSION_ENDED", "no", metadata={"end_reason": "END_REASON_IDLE", "epoch": "3"}),
            SessionEnded,
            {"end_reason": "IDLE", "epoch": 3},
        ),
    ],
)
async def test_errors_are_told_apart(
    connected: Connected, said: errors.SandpoolError, kind: type[Exception], attributes: dict[str, object]
) -> None:
    connected.service.refuse = said
    with pytest.raises(kind) as caught:
        await connected.client.session().run("x")
    assert {name: getattr(caught.value, name) for name in attributes} == attributes


async def test_a_session_is_pinned_after_its_first_use(connected: Connected) -> None:
    pinned, loose = connected.client.session("p", "a"), connected.client.session("p", "a", pin=False)
    for session in (pinned, pinned, loose, loose):
        await session.run("x")
    refs = [request.session for request in connected.service.requests]
    assert [ref.expected_epoch if ref.HasField("expected_epoch") else None for ref in refs] == [None, 7, None, None]


async def test_an_unknown_option_is_named(connected: Connected) -> None:
    with pytest.raises(TypeError, match="tmeout"):
        await connected.client.session().run("x", tmeout=3)  # type: ignore[call-arg]


async def test_seconds_become_durations(connected: Connected) -> None:
    await connected.client.session().exec(["ls", "-l"], timeout=0.25, unattended_timeout=2, env={"A": "b"})
    request = connected.service.requests[0]
    assert (request.timeout.ToMilliseconds(), request.unattended_timeout.seconds) == (250, 2)
    assert (list(request.command.argv.values), dict(request.env)) == (["ls", "-l"], {"A": "b"})


async def test_a_time_is_a_number_or_a_timedelta(connected: Connected) -> None:
    session = connected.client.session()
    await session.run("x", timeout=timedelta(seconds=5), unattended_timeout=None)
    request = connected.service.requests[0]
    assert (request.timeout.seconds, request.HasField("unattended_timeout")) == (5, False)
    with pytest.raises(TypeError, match="timeout is seconds or a timedelta, and not '5'"):
        await session.run("x", timeout="5")  # type: ignore[arg-type]


async def test_a_stream_without_its_end_is_an_error(connected: Connected) -> None:
    connected.service.script.pop()
    with pytest.raises(Internal):
        await connected.client.session().run("x")


async def test_a_dropped_stream_ends_its_call(connected: Connected) -> None:
    connected.service.hold = 2
    stream = connected.client.session().stream("x")
    assert isinstance(await anext(stream), Started) and isinstance(await anext(stream), Stdout)
    await stream.aclose()


async def test_a_value_with_a_hole_is_a_gap(connected: Connected) -> None:
    await connected.client.session().run("x", execution_id="e")
    middle = connected.service.script[3].next_position
    seen = [event async for event in connected.client.session().attach("e", middle)]
    assert seen[1] == Gap("result 1", "READER_BEHIND", 0, len(PICTURE) // 2)
    assert [type(event) for event in seen[2:4]] == [Display, type(seen[3])] and isinstance(seen[-1], Ended)
