"""grpc.health.v1: served from a Health, and followed at a peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service_kit.health import Health

Response = health_pb2.HealthCheckResponse
# A peer that answers and ends the stream at once is not asked more often than this.
FOLLOW_AGAIN_SECONDS = 0.2


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """Now."""
        serving = self._health.serving(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _response(serving)

    async def Watch(  # noqa: N802
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Now and at every change."""
        async for serving in self._health.watch(request.service):
            yield _response(serving)


def _response(serving: bool | None) -> Any:
    if serving is None:
        return Response(status=Response.SERVICE_UNKNOWN)
    return Response(status=Response.SERVING if serving else Response.NOT_SERVING)


async def follow(channel: grpc.aio.Channel, service: str, health: Health, name: str) -> None:
    """Until cancelled: the dependency name is ready while the peer says that it serves service."""
    stub = health_pb2_grpc.HealthStub(channel)
    while True:
        why = "it has ended"
        try:
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)
            async for answer in watch:
                ready = answer.status == Response.SERVING
                health.set(name, ready, "" if ready else f"{name} serves no {service} now: see its own /readyz")
        except grpc.aio.AioRpcError as error:
            why = error.code().name
        health.set(name, False, f"{name} cannot be reached: {why}")
        await asyncio.sleep(FOLLOW_AGAIN_SECONDS)
