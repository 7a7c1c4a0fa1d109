"""When to ask nodes to end VMs: idle sessions, sessions past their lifetime, VMs that have waited warm for too long."""

from __future__ import annotations

import asyncio
import time

import structlog
from google.protobuf import duration_pb2

from pool_manager import metrics
from pool_manager.deadlines import Deadlines
from pool_manager.fleet import Fleet
from pool_manager.model import ASSIGNED, DESTROYED, WARM, Vm
from pool_manager.refill import MAX_WARM_SECONDS
from sandpool.v1 import session_pb2 as end
from service_kit.errors import SandpoolError

log = structlog.get_logger("expiry")

IDLE, LIFETIME, STALE = "idle", "lifetime", "stale"
# Nodes are asked of so many VMs at a time; one that does not answer keeps its place for so long.
CONCURRENT = 64
PLACE_SECONDS = 0.25
# A node that cannot be asked is asked again after this.
RETRY_SECONDS = 1.0


class Expiry:
    """One heap, one task that waits for its head, and bounded calls to nodes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._deadlines: Deadlines[tuple[str, str]] = Deadlines()
        self._earlier = asyncio.Event()
        self._places = asyncio.Semaphore(CONCURRENT)

    def warm(self, vm: Vm) -> None:
        """A VM became warm."""
        self._set(vm, STALE, max(0.0, vm.row.created_at + MAX_WARM_SECONDS - self._fleet.clock.now()))

    def assigned(self, vm: Vm) -> None:
        """A session began, or was found at the start: how long it has been idle only its node can say."""
        assert vm.session is not None
        self._deadlines.discard((vm.row.vm_id, STALE))
        age = self._fleet.clock.now() - vm.session.created_at
        self._set(vm, IDLE, max(0.0, vm.session.cooldown_seconds - max(0.0, age)))
        self._set(vm, LIFETIME, max(0.0, vm.session.expires_at - self._fleet.clock.now()))

    def ended(self, vm: Vm) -> None:
        """It is gone."""
        for kind in (IDLE, LIFETIME, STALE):
            self._deadlines.discard((vm.row.vm_id, kind))

    def _set(self, vm: Vm, kind: str, seconds: float) -> None:
        if vm.state == DESTROYED:  # meanwhile
            return
        due = time.monotonic() + seconds
        first = self._deadlines.next_due()
        self._deadlines.set((vm.row.vm_id, kind), due)
        if first is None or due < first:
            self._earlier.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = self._deadlines.next_due()
            for vm_id, kind in self._deadlines.pop(time.monotonic()):
                vm = self._fleet.vms.get(vm_id)
                if vm is not None and due is not None:
                    self._fleet.own(self._fire(vm, kind, due))
            due = self._deadlines.next_due()
            self._earlier.clear()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                    await self._earlier.wait()
            except TimeoutError:
                continue

    async def _fire(self, vm: Vm, kind: str, due: float) -> None:
        """due: of the first of those that became due together; none of them was asked for later than it says."""
        async with self._places:
            metrics.EXPIRY_LAG_SECONDS.observe(time.monotonic() - due)
            await asyncio.wait([self._fleet.own(self._ask(vm, kind))], timeout=PLACE_SECONDS)

    async def _ask(self, vm: Vm, kind: str) -> None:
        try:
            if kind == IDLE and vm.state == ASSIGNED:
                await self._end_if_idle(vm)
            elif kind == LIFETIME and vm.state == ASSIGNED:
                await self._fleet.destroy(vm, end.END_REASON_MAX_LIFETIME)
            elif kind == STALE and vm.state == WARM and self._fleet.pools[vm.row.pool].withdraw(vm):
                self._fleet.destroy_soon(vm, end.END_REASON_SUPERSEDED)
        except SandpoolError as error:
            log.warning("expiry_failed", vm_id=vm.row.vm_id, kind=kind, error=str(error))
            self._set(vm, kind, RETRY_SECONDS)

    async def _end_if_idle(self, vm: Vm) -> None:
        assert vm.session is not None
        left = await self.end_if_idle_for(vm, vm.session.cooldown_seconds, end.END_REASON_IDLE)
        if left is not None:
            self._set(vm, IDLE, left)

    async def end_if_idle_for(self, vm: Vm, seconds: float, reason: end.EndReason.ValueType) -> float | None:
        """End a VM if it has been idle for so long; None if it is gone, else the seconds until it may be.

        Raises SandpoolError: its node cannot be asked.
        """
        link = self._fleet.links.get(vm.row.node_id)
        if link is None:
            return RETRY_SECONDS
        only = duration_pb2.Duration()
        only.FromNanoseconds(int(seconds * 1e9))
        answer = await link.destroy(vm.row.vm_id, reason, only)
        if answer.destroyed:
            await self._fleet.ended(vm, await self._fleet.reason_of(vm, reason))
            return None
        # While something goes on it cannot be idle for long enough before a whole cooldown has passed.
        return answer.remaining.ToNanoseconds() / 1e9 if answer.HasField("remaining") else seconds
