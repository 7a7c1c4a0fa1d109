"""Routes to the VMs of sessions: acquired once, kept with an open channel, and closed when no longer of use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any

import grpc

from sandpool.pool.v1 import pool_pb2
from sandpool.v1 import execution_pb2_grpc, file_pb2_grpc, session_pb2
from scheduler.flight import Flights
from scheduler.pool_manager import REPORT_SECONDS, PoolManager
from scheduler.route_cache import RouteCache
from service_kit import failpoint, rpc
from service_kit.errors import DeadlineExceeded, ResourceExhausted, SandpoolError

MAX_ROUTES = 1024
# A new permission is asked for when this part of the old one's time is over.
FRESH_PART = 0.8
# A pool-manager that restarts is back well within REPORT_SECONDS.
REPORT_AGAIN_SECONDS = 0.5

Key = tuple[str, str]  # pool, identifier
READY, TRANSIENT_FAILURE = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN


class Route:
    """One session's VM and the channel to its guest agent."""

    def __init__(self, key: Key, response: pool_pb2.AcquireResponse, now: float) -> None:
        self.key = key
        self.epoch = response.binding.epoch
        self.vm_id = response.route.vm_id
        self.channel = rpc.tunnel_channel(self.vm_id, response.route.tunnel_address, response.route.capability)
        self.executions: execution_pb2_grpc.ExecutionServiceAsyncStub
        self.executions = execution_pb2_grpc.ExecutionServiceStub(self.channel)
        self.files: file_pb2_grpc.FileServiceAsyncStub = file_pb2_grpc.FileServiceStub(self.channel)
        self.fresh_until = now + response.route.valid_for.ToNanoseconds() / 1e9 * FRESH_PART
        self.answered_at = float("-inf")
        self.calls = 0
        self.retired = False

    def is_ready(self) -> bool:
        """Whether a call would go out at once."""
        return self.channel.get_state() is READY

    async def connect(self) -> bool:
        """Open the tunnel. False: it cannot be opened now, and nothing has reached the VM."""
        state = self.channel.get_state(try_to_connect=True)
        while state is not READY:
            if state in (TRANSIENT_FAILURE, SHUTDOWN):
                return False
            await self.channel.wait_for_state_change(state)
            state = self.channel.get_state(try_to_connect=True)
        return True


class Acquired:
    """What an Acquire answered to all who shared it."""

    def __init__(self, route: Route, binding: session_pb2.SessionBinding) -> None:
        self.route = route
        self._binding = binding

    def claim(self) -> session_pb2.SessionBinding:
        """The binding: whoever asks first has created the session, if it was created."""
        binding = self._binding
        self._binding = session_pb2.SessionBinding(epoch=binding.epoch, vm_id=binding.vm_id)
        return binding


class Routes:
    """The one owner of all routes."""

    def __init__(self, pool_manager: PoolManager, capacity: int = MAX_ROUTES) -> None:
        self._pool_manager = pool_manager
        self._cache: RouteCache[Route] = RouteCache(capacity)
        self._acquires: Flights[Acquired] = Flights()
        self._reports: Flights[pool_pb2.ReportVmResponse] = Flights()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open = 0

    @property
    def known(self) -> int:
        """Routes in the cache."""
        return len(self._cache)

    @property
    def channels(self) -> int:
        """Channels that are not closed: of known routes, and of others that are still in use."""
        return self._open

    def cached(self, key: Key) -> Route | None:
        """The known route of a session."""
        return self._cache.get(key, time.monotonic())

    async def acquire(self, key: Key, allocate: bool, epoch: int | None, timeout_seconds: float | None) -> Acquired:
        """Ask the pool-manager; callers that ask the same at the same time share one question. Raises SandpoolError."""
        question = (key, allocate, epoch)
        while True:
            shared = question in self._acquires
            try:
                return await self._acquires.join(question, lambda: self._acquire(key, allocate, epoch, timeout_seconds))
            except (DeadlineExceeded, ResourceExhausted) as error:
                # The time that was up may have been another caller's.
                if not shared or error.reason not in ("NO_CAPACITY", "DEADLINE_EXCEEDED"):
                    raise

    async def _acquire(self, key: Key, allocate: bool, epoch: int | None, timeout_seconds: float | None) -> Acquired:
        allocation = session_pb2.ALLOCATION_ALLOCATE if allocate else session_pb2.ALLOCATION_EXISTING_ONLY
        ref = session_pb2.SessionRef(pool=key[0], identifier=key[1], allocation=allocation, expected_epoch=epoch)
        response = await self._pool_manager.acquire(ref, timeout_seconds)
        failpoint.reach(failpoint.Place.ROUTE_ACQUIRED)
        known = self.cached(key)
        if known is not None and known.epoch >= response.binding.epoch:  # another question was answered meanwhile
            return Acquired(known, session_pb2.SessionBinding(epoch=known.epoch, vm_id=known.vm_id))
        route = Route(key, response, time.monotonic())
        self._open += 1
        self._close(self._cache.put(key, route))
        return Acquired(route, response.binding)

    def begin(self, route: Route) -> None:
        """A call uses the route, until end."""
        self._cache.begin(route)

    def end(self, route: Route) -> None:
        """The call has ended."""
        self._close(self._cache.end(route))

    def drop(self, route: Route) -> None:
        """The route leads nowhere any more, or a fresh one is wanted."""
        self._close(self._cache.drop(route.key, route))

    async def report_lost(self, route: Route) -> pool_pb2.ReportVmResponse | None:
        """Ask whether the VM is lost. None: the pool-manager cannot say now."""
        reason, detail = session_pb2.END_REASON_VM_LOST, "the connection to the guest agent broke or was refused"
        try:
            return await self._reports.join(route.vm_id, lambda: self._pool_manager.report(route.vm_id, reason, detail))
        except SandpoolError:
            return None

    async def report_violation(self, route: Route, rule: str) -> None:
        """Have the VM destroyed, whether or not the caller stays to hear of it."""
        self.drop(route)
        await asyncio.shield(self._own(self._insist(route.vm_id, rule)))

    async def _insist(self, vm_id: str, rule: str) -> None:
        """Report until it is heard: unlike a lost VM, nobody else would find this one out. Gives up in the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                while True:
                    try:
                        await self._pool_manager.report(vm_id, session_pb2.END_REASON_GUEST_PROTOCOL, rule)
                        return
                    except SandpoolError:
                        await asyncio.sleep(REPORT_AGAIN_SECONDS)

    async def close(self) -> None:
        """Close every idle channel and wait for what is under way."""
        self._close(self._cache.clear())
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _close(self, routes: list[Route]) -> None:
        for route in routes:
            self._open -= 1
            self._own(route.channel.close())

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if the caller went away
