"""Whether a process can do its work, and what it lacks: told by whoever learns of it, served by gRPC and as a page.

Names of grpc.health.v1: "" is whether the process serves at all (its liveness); a service is SERVING while everything
that it depends on is there (readiness); sandpool.dependency.NAME is one of these alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

log = structlog.get_logger("health")

DEPENDENCY_PREFIX = "sandpool.dependency."
Response = health_pb2.HealthCheckResponse
# A peer that answers and ends the stream at once is not asked more often than this.
FOLLOW_AGAIN_SECONDS = 0.2


@dataclass(frozen=True)
class Dependency:
    """Something that is needed. detail says what is wrong, for humans."""

    name: str
    ready: bool
    detail: str


class Health:
    """The state of every dependency. One owner: the event loop."""

    def __init__(self, needed_by: Mapping[str, Iterable[str]] | None = None) -> None:
        """needed_by: the gRPC services that cannot work without a dependency, by its name."""
        self._needed_by = {name: frozenset(services) for name, services in (needed_by or {}).items()}
        self._dependencies = {name: Dependency(name, False, "not known yet") for name in self._needed_by}
        self._services: tuple[str, ...] = ()
        self._changed = asyncio.Event()
        self._draining = False

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """All, as they are now."""
        return tuple(self._dependencies.values())

    @property
    def draining(self) -> bool:
        """The process ends: nothing new is taken."""
        return self._draining

    @property
    def ready(self) -> bool:
        """Whether all of the process' work can be done."""
        return not self._draining and all(dependency.ready for dependency in self._dependencies.values())

    def serves(self, services: Iterable[str]) -> None:
        """The names of what is served."""
        self._services = tuple(services)

    def set(self, name: str, ready: bool, detail: str = "") -> None:
        """What is known of a dependency now. KeyError: there is no such one."""
        before = self._dependencies[name]
        self._dependencies[name] = Dependency(name, ready, detail)
        if before.ready != ready:
            say = log.info if ready else log.warning
            say("dependency_ready" if ready else "dependency_lost", dependency=name, detail=detail)
            self._wake()

    def drain(self) -> None:
        """From now on nothing is SERVING, and every Watch ends."""
        self._draining = True
        self._wake()

    def status(self, name: str) -> int | None:
        """As grpc.health.v1 has it; None: there is no such service."""
        if name == "" or name in self._services:
            needs = [one for one, services in self._needed_by.items() if name in services]
        elif name.startswith(DEPENDENCY_PREFIX) and name.removeprefix(DEPENDENCY_PREFIX) in self._dependencies:
            needs = [name.removeprefix(DEPENDENCY_PREFIX)]
        else:
            return None
        serving = not self._draining and all(self._dependencies[need].ready for need in needs)
        return int(Response.SERVING if serving else Response.NOT_SERVING)

    async def watch(self, name: str) -> AsyncIterator[int]:
        """The status now and whenever it is another one; ends with the process."""
        last = None
        while True:
            changed = self._changed
            status = self.status(name)
            if status is None:
                status = Response.SERVICE_UNKNOWN
            if status != last:
                last = status
                yield status
            if self._draining:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """Now."""
        status = self._health.status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return Response(status=status)

    async def Watch(  # noqa: N802
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Now and at every change."""
        async for status in self._health.watch(request.service):
            yield Response(status=status)


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
