"""Which VM serves a session: found, or assigned in one transaction, after a wait in a bounded fair queue."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from pool_manager import metrics
from pool_manager.fleet import Fleet
from pool_manager.model import ASSIGNED, MAX_WAITING, SEALED, WARM, Pool, Vm
from pool_manager.pool_spec import check_identifier, check_name
from pool_manager.store import KEEP_ENDED_SECONDS, Conflict, EndedRow, SessionRow
from sandpool.v1 import session_pb2
from service_kit import enums, failpoint
from service_kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SandpoolError,
    Unavailable,
)

# Of a caller without a deadline.
WAIT_SECONDS = 30.0
# What a caller with a deadline is left to receive the answer in.
MARGIN_SECONDS = 0.1
RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True)
class Binding:
    """A session and whether this call made it. previous: how the last one of its name ended, if it was made now.

    waited: no VM was warm when it was asked for.
    """

    vm: Vm
    session: SessionRow
    created: bool
    previous: EndedRow | None
    waited: bool = False


class Acquirer:
    """Acquire and its queue. At most one allocation per session is under way; its callers share it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._allocations: dict[tuple[str, str], _Allocation] = {}

    def pool(self, name: str, field: str = "session.pool") -> Pool:
        """By name. Raises InvalidArgument, NotFound."""
        pool = self._fleet.pools.get(check_name(name, field))
        if pool is None:
            raise NotFound("POOL_NOT_FOUND", f"there is no pool {name!r}", field=field)
        return pool

    async def find(self, ref: session_pb2.SessionRef) -> Vm | None:
        """The VM of a live session, in the epoch that was asked for. Waits for the end of one that is ending.

        Raises InvalidArgument, NotFound, FailedPrecondition SESSION_ENDED.
        """
        pool = self.pool(ref.pool)
        identifier = check_identifier(ref.identifier)
        if ref.allocation not in session_pb2.Allocation.values():
            raise InvalidArgument("INVALID_FIELD", "there is no such value", field="session.allocation")
        while (vm := pool.sessions.get(identifier)) is not None and vm.state not in (ASSIGNED, SEALED):
            await vm.gone.wait()
        epoch = vm.session.epoch if vm is not None and vm.session is not None else None
        if ref.HasField("expected_epoch") and epoch != ref.expected_epoch:
            await self._refuse_epoch(ref)
        return vm

    async def _refuse_epoch(self, ref: session_pb2.SessionRef) -> None:
        ended = await self._fleet.store.ended(ref.pool, ref.identifier, self._fleet.clock.now() - KEEP_ENDED_SECONDS)
        metadata = {"epoch": str(ref.expected_epoch)}
        if ended is not None and ended.epoch == ref.expected_epoch:
            metadata["end_reason"] = enums.name(session_pb2.EndReason.DESCRIPTOR, ended.reason)
        raise FailedPrecondition(
            "SESSION_ENDED", "the session of that epoch has ended", field="session.expected_epoch", metadata=metadata
        )

    async def acquire(self, ref: session_pb2.SessionRef, seconds: float | None) -> Binding:
        """Find or make the session within so many seconds (None: WAIT_SECONDS).

        Raises InvalidArgument, NotFound, FailedPrecondition, ResourceExhausted.
        """
        begun = time.monotonic()
        outcome, took = "CANCELLED", None
        try:
            binding = await self._acquire(ref, seconds)
            outcome, took = _outcome(binding), time.monotonic() - begun
            return binding
        except SandpoolError as error:
            outcome = error.reason
            raise
        finally:
            if ref.pool in self._fleet.pools:  # else its name is whatever the client made up
                metrics.count_acquire(ref.pool, outcome, took)

    async def _acquire(self, ref: session_pb2.SessionRef, seconds: float | None) -> Binding:
        deadline = time.monotonic() + (WAIT_SECONDS if seconds is None else max(0.0, seconds - MARGIN_SECONDS))
        while True:
            vm = await self.find(ref)
            if vm is not None and vm.session is not None:
                return Binding(vm, vm.session, False, None)
            if ref.allocation == session_pb2.ALLOCATION_EXISTING_ONLY:
                raise NotFound("SESSION_NOT_FOUND", "there is no such session", field="session.identifier")
            pool = self.pool(ref.pool)
            allocation = self._allocations.get((ref.pool, ref.identifier))
            if allocation is None:
                allocation = self._begin(pool, ref.identifier)
                binding = await allocation.wait(deadline)
                if binding is not None:
                    return binding
            else:
                binding = await allocation.wait(deadline)
                if binding is not None:  # somebody else's call made it
                    return replace(binding, created=False, previous=None)
            if time.monotonic() >= deadline:
                raise _nothing_in_time(pool)

    def _begin(self, pool: Pool, identifier: str) -> _Allocation:
        _check_open(pool)
        if len(pool.sessions) + pool.beginning + len(pool.allocating) >= pool.spec.max_sessions:
            raise ResourceExhausted(
                "MAX_SESSIONS",
                f"the pool has its {pool.spec.max_sessions} sessions",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        if pool.is_waiting() >= MAX_WAITING:
            raise ResourceExhausted(
                "QUEUE_FULL", f"{MAX_WAITING} callers wait already", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        key = (pool.row.name, identifier)
        allocation = self._allocations[key] = _Allocation()
        allocation.task = task = self._fleet.own(self._allocate(pool, identifier, allocation))
        pool.allocating.add(identifier)

        def done(_: object) -> None:
            pool.allocating.discard(identifier)
            del self._allocations[key]

        task.add_done_callback(done)
        return allocation

    async def _allocate(self, pool: Pool, identifier: str, allocation: _Allocation) -> Binding:
        """Until it is done or nobody waits for it any more."""
        waited = False
        while True:
            _check_open(pool)
            vm = pool.take()
            if vm is None:
                waited = True
                vm = await self._wait(pool)
            if vm.state != WARM or not vm.confirmed:
                continue
            vm.become(ASSIGNED)  # nobody else takes it while the commit is under way
            pool.allocating.discard(identifier)
            pool.beginning += 1
            allocation.committing = True
            binding = await self._assign(pool, vm, identifier)
            allocation.committing = False
            if binding is not None:
                return replace(binding, waited=waited)
            pool.allocating.add(identifier)

    async def _wait(self, pool: Pool) -> Vm:
        waiter: asyncio.Future[Vm] = asyncio.get_running_loop().create_future()
        pool.waiting.append(waiter)
        self._fleet.on_room(pool)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                pool.offer(waiter.result())
                self._fleet.on_room(pool)  # it may be one too many
            elif waiter in pool.waiting:
                pool.waiting.remove(waiter)
            raise

    async def _assign(self, pool: Pool, vm: Vm, identifier: str) -> Binding | None:
        now = self._fleet.clock.now()
        spec = pool.spec
        row = SessionRow(
            pool.row.name,
            identifier,
            0,
            vm.row.vm_id,
            now,
            now + spec.max_lifetime.ToNanoseconds() / 1e9,
            spec.cooldown.ToNanoseconds() / 1e9,
        )
        failpoint.reach(failpoint.Place.VM_CHOSEN)
        try:
            epoch, previous = await self._fleet.store.assign(row)
            failpoint.reach(failpoint.Place.SESSION_COMMITTED)
        except Unavailable:
            self._fleet.take_back(vm)
            raise
        except Conflict:
            self._fleet.destroy_soon(vm, session_pb2.END_REASON_ORPHANED)  # it serves nobody from now on
            other = pool.sessions.get(identifier)  # made by an allocation whose callers had left
            return Binding(other, other.session, False, None) if other is not None and other.session else None
        finally:
            pool.beginning -= 1
        vm.session = replace(row, epoch=epoch)
        pool.sessions[identifier] = vm
        self._fleet.on_assigned(vm)
        self._fleet.on_room(pool)
        return Binding(vm, vm.session, True, previous)


class _Allocation:
    """One allocation and how many callers wait for it: without any it is given up.

    A commit is never given up half-way: a session without a user expires.
    """

    task: asyncio.Task[Binding]

    def __init__(self) -> None:
        self.committing = False
        self._callers = 0

    async def wait(self, deadline: float) -> Binding | None:
        """The binding; None when the time is over or the allocation was given up. Raises what it raised."""
        self._callers += 1
        try:
            await asyncio.wait([self.task], timeout=max(0.0, deadline - time.monotonic()))
        finally:
            self._callers -= 1
            if not self._callers and not self.committing and not self.task.done():
                self.task.cancel()
        if not self.task.done() or self.task.cancelled():
            return None
        return self.task.result()


def _outcome(binding: Binding) -> str:
    if not binding.created:
        return "found"
    return "waited" if binding.waited else "warm"


def _check_open(pool: Pool) -> None:
    if pool.closing:
        raise FailedPrecondition("POOL_DELETING", "the pool is being deleted", field="session.pool")


def _nothing_in_time(pool: Pool) -> ResourceExhausted:
    why = "; ".join(condition.message for condition in pool.conditions.values())
    message = "no VM became ready in time" + (f": {why}" if why else "")
    return ResourceExhausted("NO_CAPACITY", message, retry_after_seconds=RETRY_AFTER_SECONDS)
