"""What the pool-manager holds in memory: pools, their VMs and sessions, callers that wait. Pure."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pool_manager.store import PoolRow, SessionRow, VmRow
from sandpool.v1 import pool_pb2, session_pb2
from service_kit.errors import FailedPrecondition

PROVISIONING, WARM, ASSIGNED, SEALED, DESTROYED = "PROVISIONING", "WARM", "ASSIGNED", "SEALED", "DESTROYED"
TRANSITIONS = {
    PROVISIONING: {WARM, DESTROYED},
    WARM: {ASSIGNED, DESTROYED},
    ASSIGNED: {WARM, SEALED, DESTROYED},  # WARM again: the store did not take the assignment
    SEALED: {ASSIGNED, DESTROYED},
    DESTROYED: set(),
}
STATES = tuple(TRANSITIONS)

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
    # For humans: what its node said of its end.
    end_detail: str = ""
    # Its node has said to this process that it is ready, and can be reached; and that is durable.
    said_ready: bool = False
    confirmed: bool = False
    # It is to be destroyed, whatever it was: nobody gets it.
    doomed: bool = False
    # A task of this process waits for its CreateVm.
    creating: bool = False
    # Kept by Permissions: a token, and when it expires.
    permission: tuple[str, float] | None = None
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
        # Free to be assigned, longest first: of this generation and of older ones. Dictionaries as ordered sets.
        self.warm: dict[Vm, None] = {}
        self.stale: dict[Vm, None] = {}
        self.provisioning: set[Vm] = set()
        self.waiting: deque[asyncio.Future[Vm]] = deque()
        # Identifiers of sessions to come that have no VM yet; and how many have one, which is being committed.
        self.allocating: set[str] = set()
        self.beginning = 0
        # Being deleted, or about to be: the row says so a moment later.
        self.closing = row.deleting
        # Its last VM is gone, and soon its row.
        self.removing = False
        # Creations that have no row yet.
        self.starting = 0
        self.failures = 0
        self.not_before = 0.0
        self.conditions: dict[pool_pb2.PoolConditionType.ValueType, Condition] = {}

    def change(self, row: PoolRow) -> None:
        """Take over new settings; what is warm of an older generation is stale from now on."""
        if row.generation != self.row.generation:
            self.stale.update(self.warm)
            self.warm.clear()
            self.provisioning.clear()
            self.try_again()  # the new one may be better
        self.row, self.spec = row, pool_pb2.PoolSpec.FromString(row.spec)
        self.closing = row.deleting

    def close(self) -> None:
        """From here on no session begins."""
        self.closing = True
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_exception(FailedPrecondition("POOL_DELETING", "the pool is being deleted"))

    def add(self, vm: Vm) -> None:
        """A VM that is about to be created, or was found at the start: then its node may be gone."""
        self.vms[vm.row.vm_id] = vm
        if vm.creating:
            self.expect(vm)

    def expect(self, vm: Vm) -> None:
        """A node that can be reached has this VM, or is making it: if it is not ready yet, it soon is. Idempotent."""
        if vm.state == PROVISIONING and not vm.doomed and vm.row.generation == self.row.generation:
            self.provisioning.add(vm)

    def offer(self, vm: Vm) -> None:
        """A VM became free to be assigned: to the caller that has waited longest, or kept warm."""
        self.provisioning.discard(vm)
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(vm)
                return
        (self.warm if vm.row.generation == self.row.generation else self.stale)[vm] = None

    def take(self) -> Vm | None:
        """A warm VM, of this generation if there is one; None if there is none, or others wait already."""
        if self.is_waiting():
            return None
        for source in (self.warm, self.stale):
            for vm in source:
                del source[vm]
                return vm
        return None

    def withdraw(self, vm: Vm) -> bool:
        """Nobody gets this VM from now on; True if somebody might have."""
        was_there = vm in self.warm or vm in self.stale or vm in self.provisioning
        self.warm.pop(vm, None)
        self.stale.pop(vm, None)
        self.provisioning.discard(vm)
        return was_there

    def is_waiting(self) -> int:
        """Callers in the queue."""
        return sum(1 for waiter in self.waiting if not waiter.done())

    def count(self, state: str) -> int:
        """VMs in a state."""
        return sum(1 for vm in self.vms.values() if vm.state == state)

    def fail(self, now: float, pause: Callable[[int], float]) -> None:
        """A creation failed: pause after it. Those that had begun before the pause are one failure together."""
        if now >= self.not_before:
            self.failures += 1
            self.not_before = now + pause(self.failures)

    def try_again(self) -> None:
        """What failures have taught is out of date."""
        self.failures, self.not_before = 0, 0.0

    def coming(self) -> int:
        """VMs of this generation that are being created."""
        return self.starting + len(self.provisioning)

    def shortage(self) -> int:
        """Creations to begin now, so that ready_target VMs are warm beyond those that callers wait for."""
        wanted = min(self.spec.ready_target + self.is_waiting(), self._free_places())
        return max(0, wanted - len(self.warm) - self.coming())

    def _free_places(self) -> int:
        """Sessions that may still begin."""
        if self.closing:
            return 0
        return max(0, self.spec.max_sessions - len(self.sessions) - self.beginning)

    def is_full(self) -> bool:
        """Whether max_sessions is reached."""
        return len(self.sessions) >= self.spec.max_sessions

    def in_use(self) -> list[Vm]:
        """VMs of sessions, those that begin just now included."""
        return [vm for vm in self.vms.values() if vm.state in (ASSIGNED, SEALED)]

    def surplus(self) -> list[Vm]:
        """Warm VMs to destroy: beyond the target, and one of an older generation for each that is ready of this one."""
        target = min(self.spec.ready_target, self._free_places())
        extra = list(self.warm)[target:] if len(self.warm) > target else []
        return extra + list(self.stale)[max(0, target - len(self.warm)) :]

    def remove(self, vm: Vm) -> None:
        """Forget a VM that is gone. Idempotent."""
        self.vms.pop(vm.row.vm_id, None)
        self.withdraw(vm)
        if vm.session is not None and self.sessions.get(vm.session.identifier) is vm:
            del self.sessions[vm.session.identifier]
