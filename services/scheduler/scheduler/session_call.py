"""One client's call on its way to its session's VM, over expiries and broken connections.

The rule that everything here serves: what may have run is never run again and never called UNAVAILABLE; what certainly
did not run is tried again without the client noticing.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

import grpc
import structlog

from sandpool.v1 import session_pb2
from scheduler import guest_errors, metrics
from scheduler.guest_check import GuestProtocolError
from scheduler.routes import Acquired, Route, Routes
from service_kit import enums, telemetry
from service_kit.errors import Aborted, DeadlineExceeded, FailedPrecondition, NotFound, SandpoolError, Unavailable

log = structlog.get_logger("session_call")

# Before each further try: at once where the session was only replaced, and long enough for a tunnel that is restarted.
RETRY_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)
# What has held for so long may break as if for the first time. A guest that answers and breaks off, again and again,
# has its tries counted: each of them costs a question to its node.
SETTLED_SECONDS = 2.0
# No pool has a shorter cooldown: a call that a guest took less long ago keeps its session from ending as idle.
MIN_COOLDOWN_SECONDS = 1.0


class SessionCall:
    """Reaches the VM of a session, and decides what a failure means. A context manager: it holds its route."""

    def __init__(
        self,
        routes: Routes,
        ref: session_pb2.SessionRef,
        context: grpc.aio.ServicerContext[Any, Any],
        *,
        allocates: bool,
    ) -> None:
        self.begun = time.perf_counter()
        self.acquire_seconds = self.connect_seconds = 0.0
        self.binding = session_pb2.SessionBinding()
        self.route: Route | None = None
        self.consumed = False  # the request was a stream: it cannot be sent again, even if nothing ran
        self._routes = routes
        self._context = context
        self._key = (ref.pool, ref.identifier)
        self._expected = ref.expected_epoch if ref.HasField("expected_epoch") else None
        unspecified = ref.allocation == session_pb2.ALLOCATION_UNSPECIFIED
        self._allocates = allocates if unspecified else ref.allocation == session_pb2.ALLOCATION_ALLOCATE
        self._sent = 0  # calls that the guest may have taken
        self._sent_at = 0.0  # of the first of them: a later one that was refused makes it no younger
        self._answered = False
        self._tries = 0
        self._settling_since = float("inf")  # when the connection in use first answered
        telemetry.annotate(pool=ref.pool)

    def __enter__(self) -> SessionCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    async def reach(self) -> Route:
        """A route whose channel is open: what is sent on it next counts as having reached the guest."""
        while True:
            route = await self._hold()
            if route.is_ready() or await self._connect(route):
                if not self._sent:
                    self._sent_at = time.monotonic()
                self._sent += 1
                return route
            await self._recover(repeatable=True)

    def answered(self) -> None:
        """The guest said something: it took the call."""
        self._answered = True
        self._settling_since = min(self._settling_since, time.monotonic())
        if self.route is not None:
            self.route.answered_at = time.monotonic()

    def seconds_left(self) -> float | None:
        """Until the client's deadline."""
        return self._context.time_remaining()

    async def fail(self, error: grpc.aio.AioRpcError, *, repeatable: bool) -> None:
        """The call to the guest failed. Returns if it may be sent again; else raises what the client is told."""
        violation = guest_errors.violation(error)
        if violation is not None:
            raise await self.violated(violation) from error
        if guest_errors.is_sealed(error):
            self._sent -= 1
            await self._recover(repeatable=True)
        elif error.code() is grpc.StatusCode.UNAVAILABLE:
            await self._recover(repeatable=repeatable)
        elif self._is_late():  # a guest whose call came too late answers with an error of any kind
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "the deadline has passed") from error
        else:
            raise guest_errors.translate(error) from error

    async def violated(self, error: GuestProtocolError) -> Aborted:
        """The guest broke the protocol: its VM is ended. Returns what the client is told."""
        if self.route is None:
            raise error
        metrics.count_violation(str(error))
        log.warning("guest_protocol", vm_id=self.route.vm_id, rule=str(error))
        await self._routes.report_violation(self.route, str(error))
        return lost(session_pb2.END_REASON_GUEST_PROTOCOL)

    async def _hold(self) -> Route:
        self._release()
        while True:
            route, pinned = self._routes.cached(self._key), self._pinned()
            if route is not None and pinned in (None, route.epoch):
                metrics.HIT.inc()
                binding = session_pb2.SessionBinding(epoch=route.epoch, vm_id=route.vm_id)
            else:
                metrics.MISS.inc()
                acquired = await self._acquire(pinned)
                route = acquired.route
                if route.retired or pinned not in (None, route.epoch):  # since it was asked for
                    continue
                binding = acquired.claim()
            if binding.epoch != self.binding.epoch:  # else what the first answer said of it still holds
                self.binding = binding
            self._routes.begin(route)
            self.route = route
            telemetry.annotate(epoch=route.epoch, vm_id=route.vm_id)
            return route

    def _release(self) -> None:
        if self.route is not None:
            self._routes.end(self.route)
            self.route = None

    def _pinned(self) -> int | None:
        """The only epoch in which this call may go on."""
        return self.binding.epoch if self._sent else self._expected

    async def _acquire(self, pinned: int | None) -> Acquired:
        while True:
            begun, seconds = time.perf_counter(), metrics.NOT_ACQUIRED
            try:
                with telemetry.stage("acquire"):
                    allocates = self._allocates and pinned is None
                    acquired = await self._routes.acquire(self._key, allocates, pinned, self.seconds_left())
                    seconds = metrics.ACQUIRED
                    return acquired
            except SandpoolError as error:
                if not self._sent:
                    raise _ended_instead(error, self._expected) from error
                if error.reason in ("SESSION_ENDED", "SESSION_NOT_FOUND"):
                    raise _lost_as(error.metadata.get("end_reason")) from error
                await self._pause()
            finally:
                took = time.perf_counter() - begun
                self.acquire_seconds += took
                seconds.observe(took)

    async def _connect(self, route: Route) -> bool:
        begun = time.perf_counter()
        with telemetry.stage("connect"):
            connected = await route.connect()
        took = time.perf_counter() - begun
        self.connect_seconds += took
        (metrics.CONNECTED if connected else metrics.NOT_CONNECTED).observe(took)
        return connected

    async def _recover(self, *, repeatable: bool) -> None:
        """Returns when there is a point in trying again."""
        route = self.route
        if route is None:
            return
        with telemetry.stage("recover"):
            report = await self._routes.report_lost(route)
        if report is not None:  # else this route is all that is known
            self._routes.drop(route)
            if report.ended:
                self._end(report.end_reason)
        if self.consumed or (self._sent and not repeatable):
            raise cut()
        await self._pause()

    def _end(self, reason: session_pb2.EndReason.ValueType) -> None:
        """The session has ended. Returns if the call may go to the next session of that name."""
        if self.consumed or (self._sent and not self._came_too_late(reason)):
            raise lost(reason)
        self._sent = 0
        if self._expected is not None:
            raise _ended(self._expected, enums.name(session_pb2.EndReason.DESCRIPTOR, reason))

    def _came_too_late(self, reason: session_pb2.EndReason.ValueType) -> bool:
        """Whether the guest cannot have taken the call: had it, its session would not have ended as idle yet."""
        since = time.monotonic() - self._sent_at
        idle = reason == session_pb2.END_REASON_IDLE
        return idle and self._sent == 1 and not self._answered and since < MIN_COOLDOWN_SECONDS

    async def _pause(self) -> None:
        if time.monotonic() - self._settling_since > SETTLED_SECONDS:
            self._tries = 0
        self._settling_since = float("inf")
        if self._tries >= len(RETRY_SECONDS):
            raise cut() if self._sent else Unavailable("SESSION_UNREACHABLE", "the session's VM cannot be reached")
        self._tries += 1
        with telemetry.stage("recover"):
            await asyncio.sleep(RETRY_SECONDS[self._tries - 1])

    def _is_late(self) -> bool:
        left = self.seconds_left()
        return left is not None and left <= 0.001  # the deadline is rounded on its way


def lost(reason: session_pb2.EndReason.ValueType) -> Aborted:
    """The session ended during a call that may have run."""
    return _lost_as(enums.name(session_pb2.EndReason.DESCRIPTOR, reason))


def _lost_as(reason: str | None) -> Aborted:
    message = "the session ended during the call, which may have run"
    return Aborted("SESSION_LOST", message, metadata={"end_reason": reason} if reason else {})


def cut() -> Aborted:
    """The connection broke, the session lives, and the call cannot go on."""
    return Aborted("CONNECTION_LOST", "the connection to the session broke; the call may have run")


def _ended(epoch: int, reason: str | None) -> FailedPrecondition:
    return FailedPrecondition(
        "SESSION_ENDED",
        "the session of that epoch has ended",
        field="session.expected_epoch",
        metadata={"epoch": str(epoch)} | ({"end_reason": reason} if reason else {}),
    )


def _ended_instead(error: SandpoolError, expected_epoch: int | None) -> SandpoolError:
    """Who named an epoch is told that it has ended, not that there is no session."""
    if expected_epoch is not None and isinstance(error, NotFound) and error.reason == "SESSION_NOT_FOUND":
        return _ended(expected_epoch, None)
    return error
