"""Whether a process can do its work, and what it lacks: told by whoever learns of it. Knows no gRPC.

Names of grpc.health.v1: "" is whether the process serves at all (its liveness); a service is SERVING while everything
that it depends on is there (readiness); sandpool.dependency.NAME is one of these alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

import structlog

log = structlog.get_logger("health")

DEPENDENCY_PREFIX = "sandpool.dependency."


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

    def serving(self, name: str) -> bool | None:
        """By the name that grpc.health.v1 has for it; None: there is no such service."""
        if name == "" or name in self._services:
            needs = [one for one, services in self._needed_by.items() if name in services]
        elif name.startswith(DEPENDENCY_PREFIX) and name.removeprefix(DEPENDENCY_PREFIX) in self._dependencies:
            needs = [name.removeprefix(DEPENDENCY_PREFIX)]
        else:
            return None
        return not self._draining and all(self._dependencies[need].ready for need in needs)

    async def watch(self, name: str) -> AsyncIterator[bool | None]:
        """What serving() answers, now and whenever it is something else; ends with the process."""
        last: object = self
        while True:
            changed = self._changed
            serving = self.serving(name)
            if serving is not last:
                last = serving
                yield serving
            if self._draining:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
