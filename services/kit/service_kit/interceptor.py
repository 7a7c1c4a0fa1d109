"""One interceptor for every rpc: errors to statuses, a span, and one canonical log line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.context import attach

from service_kit import errors, telemetry
from service_kit.rpc_metrics import MethodMetrics, RpcMetrics

log = structlog.get_logger("rpc")

# Probed all the time by machines: a line per call would bury the others.
QUIET_PREFIXES = ("/grpc.health.", "/grpc.reflection.")


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps handlers of all four kinds. Handlers raise SandpoolError; anything else is INTERNAL and logged whole."""

    def __init__(self, calls: RpcMetrics) -> None:
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """grpc.aio's hook: replaces the handler by a wrapped one."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(QUIET_PREFIXES):
            return handler  # type: ignore[no-any-return]
        handler = handler._replace(request_deserializer=_tolerant(handler.request_deserializer))
        calls = self._calls.of(method)
        if handler.unary_unary:
            return handler._replace(unary_unary=_unary(method, calls, handler.unary_unary))  # type: ignore[no-any-return]
        if handler.stream_unary:
            return handler._replace(stream_unary=_unary(method, calls, handler.stream_unary))  # type: ignore[no-any-return]
        if handler.unary_stream:
            return handler._replace(unary_stream=_stream(method, calls, handler.unary_stream))  # type: ignore[no-any-return]
        return handler._replace(stream_stream=_stream(method, calls, handler.stream_stream))  # type: ignore[no-any-return]


def _tolerant(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """None for bytes that are no such message: grpcio would answer UNKNOWN, and log the whole exception."""
    if deserializer is None:
        return None

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return None

    return deserialize


def _check(request: Any) -> Any:
    if request is None:
        raise errors.InvalidArgument("MALFORMED_REQUEST", "the bytes of the request are no such message")
    return request


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _check(request)


def _whole(request: Any) -> Any:
    """One request or all of a stream. Raises InvalidArgument, at once or when the stream is there."""
    return _checked(request) if hasattr(request, "__aiter__") else _check(request)


def _unary(method: str, calls: MethodMetrics, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with _rpc(method, calls, context):
            return await handler(_whole(request), context)

    return call


def _stream(
    method: str, calls: MethodMetrics, handler: Callable[..., AsyncIterator[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async with _rpc(method, calls, context):
            async for response in handler(_whole(request), context):
                yield response

    return call


@asynccontextmanager
async def _rpc(method: str, calls: MethodMetrics, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    begun = time.perf_counter()
    record = telemetry.begin()
    code = "CANCELLED"  # what it was if nothing below says otherwise
    parent = telemetry.incoming(context.invocation_metadata() or ())
    span = telemetry.tracer.start_span(method[1:], parent, kind=trace.SpanKind.SERVER)
    # Never detached: the rpc has its task to itself, and a stream whose client is gone is closed by another one.
    attach(trace.set_span_in_context(span))
    calls.begin()
    record.entered = time.perf_counter()
    try:
        yield
        code = "OK"
    except errors.SandpoolError as error:
        code = error.code.name
        telemetry.annotate(reason=error.reason)
        await context.abort_with_status(errors.to_status(error))
    except grpc.aio.AioRpcError as error:
        mapped = errors.from_rpc_error(error)
        code = mapped.code.name
        telemetry.annotate(reason=mapped.reason)
        await context.abort_with_status(errors.to_status(mapped))
    except Exception:
        code = "INTERNAL"
        log.exception("rpc_failed", method=method)
        await context.abort_with_status(errors.to_status(errors.Internal("INTERNAL", "an internal error; see log")))
    finally:
        seconds = time.perf_counter() - begun
        calls.end(code, seconds)
        if code not in ("OK", "CANCELLED"):
            span.set_status(trace.StatusCode.ERROR, code)
        # In the loop's next turn: the answer leaves in this one, and nobody waits for a line of the log.
        asyncio.get_running_loop().call_soon(_finish, span, method, code, begun, seconds, record)


def _finish(
    span: trace.Span, method: str, code: str, begun: float, seconds: float, record: telemetry.RpcRecord
) -> None:
    with trace.use_span(span, end_on_exit=True):
        _write_line(method, code, begun, seconds, record)


def _write_line(method: str, code: str, begun: float, seconds: float, record: telemetry.RpcRecord) -> None:
    """accept_ms is what came before the handler; a handler without stages has nothing to be explained."""
    accept = record.entered - begun
    unexplained = seconds - accept - sum(record.stages.values()) if record.stages else None
    stages = {f"{name}_ms": round(value * 1000, 3) for name, value in record.stages.items()}
    log.info(
        "rpc",
        method=method,
        code=code,
        duration_ms=round(seconds * 1000, 3),
        accept_ms=round(accept * 1000, 3),
        **stages,
        unexplained_ms=round(unexplained * 1000, 3) if unexplained is not None else None,
        **record.annotations,
    )
