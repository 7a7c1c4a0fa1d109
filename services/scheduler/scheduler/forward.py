"""Services that the pool-manager serves: their calls are passed on as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from scheduler.pool_manager import translate
from service_kit import errors, telemetry


def add_forward(
    descriptor: ServiceDescriptor, upstream: grpc.aio.Channel, ending: asyncio.Event, server: grpc.aio.Server
) -> None:
    """Serve a service by passing every method on. Bytes stay bytes: the pool-manager checks what they say.

    ending: of this process; streams are not waited for then, they have no end of their own.
    """
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method.name: grpc.unary_stream_rpc_method_handler(_forward_stream(method, upstream, ending))
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler(_forward(method, upstream))
        for method in descriptor.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))


def _forward(method: MethodDescriptor, upstream: grpc.aio.Channel) -> Callable[..., Awaitable[bytes]]:
    call: Any = upstream.unary_unary(_path(method))

    async def forward(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            with telemetry.stage("pool_manager"):
                answer: bytes = await call(request, timeout=context.time_remaining(), metadata=telemetry.outgoing())
                return answer
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error

    return forward


def _forward_stream(
    method: MethodDescriptor, upstream: grpc.aio.Channel, ending: asyncio.Event
) -> Callable[..., AsyncIterator[bytes]]:
    """One message at a time: what a client does not read is not asked for."""
    start: Any = upstream.unary_stream(_path(method))

    async def forward(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        call = start(request, timeout=context.time_remaining(), metadata=telemetry.outgoing())
        cancelling = asyncio.ensure_future(ending.wait())
        cancelling.add_done_callback(lambda _: call.cancel())
        try:
            async for answer in call:
                yield answer
        except asyncio.CancelledError:
            if ending.is_set():
                raise errors.Unavailable("SHUTTING_DOWN", "this scheduler ends: ask again") from None
            raise
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
        finally:
            cancelling.cancel()

    return forward


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"
