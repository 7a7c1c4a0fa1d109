"""What the pool-manager holds in memory: pools, their VMs and sessions, callers that wait. Pure."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from pool_manager.store import PoolRow, SessionRow, VmRow
from sandpool.v1 import pool_pb2, session_pb2

PROVISIONING, WARM, ASSIGNED, SEALED, DESTROYED = "PROVISIONING", "WARM", "ASSIGNED", "SEALED", "DESTROYED"
TRANSITIONS = {
    PROVISIONING: {WARM, DESTROYED},
    WARM: {ASSIGNED, DESTROYED},
    ASSIGNED: {SEALED, DESTROYED},
    SEALED: {ASSIGNED, DESTROYED},
    DESTROYED: set(),
}

# Callers that wait for a VM of one pool; the next one is refused at once.
MAX_WAITING = 1000


class IllegalTransition(Exception):
    """Our fault: nothing was changed."""


@dataclass(eq=False)
class Vm:
    """One VM. gone is set once its end is durable."""

    row: VmRow
    state: str
    session: SessionRow | None = None
    end_reason: session_pb2.EndReason.ValueType = session_pb2.END_REASON_UNSPECIFIED
    # Its node has said in a snapshot or a change, to this process, that it is ready.
    confirmed: bool = False
    # A task of this process waits for its CreateVm.
    creating: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def become(self, state: str) -> None:
        """Raises IllegalTransition."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"{self.row.vm_id}: {self.state} to {state}")
        self.state = state


@dataclass
class Condition:
    """See sandpool.v1.PoolCondition."""

    reason: str
    message: str
    since: float


class Pool:
    """One pool. Every method decides and marks synchronously; acting is the caller's."""

    def __init__(self, row: PoolRow) -> None:
        self.row = row
        self.spec = pool_pb2.PoolSpec.FromString(row.spec)
        self.vms: dict[str, Vm] = {}
        self.sessions: dict[str, Vm] = {}
        self.warm: deque[Vm] = deque()
        self.waiting: deque[asyncio.Future[Vm]] = deque()
        self.allocating = 0
        # Creations that have no row yet.
        self.starting = 0
        self.failures = 0
        self.not_before = 0.0
        self.conditions: dict[pool_pb2.PoolConditionType.ValueType, Condition] = {}

    def change(self, row: PoolRow) -> None:
        """Take over new settings."""
        self.row, self.spec = row, pool_pb2.PoolSpec.FromString(row.spec)

    def offer(self, vm: Vm) -> None:
        """A VM became free to be assigned: to the caller that has waited longest, or kept warm."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(vm)
                return
        self.warm.append(vm)

    def take(self) -> Vm | None:
        """A warm VM, of this generation if there is one; None if there is none, or others wait already."""
        if any(not waiter.done() for waiter in self.waiting):
            return None
        for vm in self.warm:
            if vm.row.generation == self.row.generation:
                self.warm.remove(vm)
                return vm
        return self.warm.popleft() if self.warm else None

    def is_waiting(self) -> int:
        """Callers in the queue."""
        return sum(1 for waiter in self.waiting if not waiter.done())

    def count(self, state: str) -> int:
        """VMs in a state."""
        return sum(1 for vm in self.vms.values() if vm.state == state)

    def shortage(self) -> int:
        """Creations to begin now, so that ready_target VMs are warm beyond those that callers wait for."""
        if self.row.deleting:
            return 0
        fresh = [vm for vm in self.vms.values() if vm.row.generation == self.row.generation]
        coming = self.starting + sum(1 for vm in fresh if vm.state == PROVISIONING)
        ready = sum(1 for vm in self.warm if vm.row.generation == self.row.generation)
        free_places = self.spec.max_sessions - len(self.sessions)
        wanted = min(self.spec.ready_target + self.is_waiting(), free_places)
        return max(0, wanted - ready - coming)

    def surplus(self) -> list[Vm]:
        """Warm VMs to destroy: beyond the target, and one of an older generation for each that is ready of this one."""
        fresh = [vm for vm in self.warm if vm.row.generation == self.row.generation]
        stale = [vm for vm in self.warm if vm.row.generation != self.row.generation]
        target = 0 if self.row.deleting else self.spec.ready_target
        extra = fresh[target:]
        room_for_stale = max(0, target - len(fresh))
        return extra + stale[room_for_stale:]

    def remove(self, vm: Vm) -> None:
        """Forget a VM that is gone. Idempotent."""
        self.vms.pop(vm.row.vm_id, None)
        if vm.session is not None and self.sessions.get(vm.session.identifier) is vm:
            del self.sessions[vm.session.identifier]
        if vm in self.warm:
            self.warm.remove(vm)
