"""The events of one execution, from the guest to the client, over connections that break."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
from opentelemetry import trace

from sandpool.v1 import execution_pb2 as pb
from scheduler import metrics
from scheduler.guest_check import GuestProtocolError, StreamCheck, StreamState
from scheduler.routes import Route
from scheduler.session_call import SessionCall, cut
from scheduler.stream_clock import StreamClock
from service_kit import failpoint, telemetry

Stream: TypeAlias = "grpc.aio.UnaryStreamCall[Any, pb.ExecutionEvent]"
# What a guest that has lost an execution answers to an Attach.
_FORGOTTEN = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


async def events(
    call: SessionCall, check: StreamCheck, open_stream: Callable[[Route, dict[str, Any]], Stream], issued: bool
) -> AsyncIterator[pb.ExecutionEvent]:
    """Everything up to the terminal event.

    open_stream sends the client's own request, which may be sent again: an execution is begun once per id. After its
    first event the stream goes on by Attach. issued: the id is ours, so the client cannot have begun it before.
    """
    telemetry.annotate(execution_id=check.execution_id)
    span = telemetry.tracer.start_span("guest")
    telemetry.add_first_stage("check")
    try:
        with call, StreamClock() as clock:
            while True:
                route = await call.reach()
                clock.sent()
                options = {"timeout": call.seconds_left(), "metadata": telemetry.outgoing()}
                stream = _attach(route, check, options) if check.started else open_stream(route, options)
                fresh = True
                try:
                    async for event in stream:
                        clock.received()
                        if event is None:  # grpcio's answer for bytes that are no such message
                            raise GuestProtocolError("an event that cannot be parsed")
                        admitted = check.admit(event)
                        if fresh:
                            fresh = False
                            call.answered()
                        if admitted:
                            _complete(event, call, check, issued)
                            _trace(event, span)
                            metrics.count_event(event)
                            yield event
                            failpoint.reach(failpoint.Place.EVENT_SENT)
                        clock.delivered()
                    check.finish()
                    return
                except GuestProtocolError as error:
                    clock.stopped()
                    raise await call.violated(error) from error
                except grpc.aio.AioRpcError as error:
                    clock.stopped()
                    if check.state is StreamState.ENDED:
                        return  # all is said: what the guest or the link does after that is nobody's concern
                    if check.started and error.code() in _FORGOTTEN:
                        raise cut() from error
                    await call.fail(error, repeatable=True)
                finally:
                    stream.cancel()
                    clock.stopped()
                check.resume()
    finally:
        span.end()


def _trace(event: pb.ExecutionEvent, span: trace.Span) -> None:
    """The guest's own stages as spans, no longer than the whole: its numbers are not to be trusted."""
    if event.HasField("ended"):
        timings = event.ended.timings
        for name, microseconds in (("guest.queue", timings.guest_queue_us), ("guest.run", timings.guest_run_us)):
            telemetry.add_span(name, min(microseconds, timings.total_us) / 1e6, span)


def _attach(route: Route, check: StreamCheck, options: dict[str, Any]) -> Stream:
    request = pb.AttachRequest(execution_id=check.execution_id, position=check.position)
    return route.executions.Attach(request, **options)


def _complete(event: pb.ExecutionEvent, call: SessionCall, check: StreamCheck, issued: bool) -> None:
    """Add what only the scheduler knows."""
    if check.state is StreamState.ENDED:
        timings = event.ended.timings
        timings.acquire_us = int(call.acquire_seconds * 1e6)
        timings.connect_us = int(call.connect_seconds * 1e6)
        timings.total_us = int((time.perf_counter() - call.begun) * 1e6)
    elif event.HasField("started"):
        event.started.session.CopyFrom(call.binding)
        if issued:
            event.started.attached = False
