"""Services that the pool-manager serves: their unary calls are passed on as they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from scheduler.pool_manager import translate
from service_kit import telemetry


def add_forward(descriptor: ServiceDescriptor, upstream: grpc.aio.Channel, server: grpc.aio.Server) -> None:
    """Serve a service by passing every method on. Bytes stay bytes: the pool-manager checks what they say."""
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method.name: grpc.unary_unary_rpc_method_handler(_forward(method, upstream)) for method in descriptor.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))


def _forward(method: MethodDescriptor, upstream: grpc.aio.Channel) -> Callable[..., Awaitable[bytes]]:
    call: Any = upstream.unary_unary(f"/{method.containing_service.full_name}/{method.name}")

    async def forward(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            with telemetry.stage("pool_manager"):
                answer: bytes = await call(request, timeout=context.time_remaining(), metadata=telemetry.outgoing())
                return answer
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error

    return forward
