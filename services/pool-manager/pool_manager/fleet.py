"""Pools, VMs and nodes together: the life of a VM from its row to its end, and reconciliation with what nodes say."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import structlog

from pool_manager import happened, metrics
from pool_manager.clock import Clock
from pool_manager.model import ASSIGNED, DESTROYED, PROVISIONING, WARM, Condition, Pool, Vm
from pool_manager.node_link import NodeLink
from pool_manager.store import EventRow, Everything, NodeRow, PoolRow, Store
from sandpool.node.v1 import node_pb2 as node
from sandpool.v1 import pool_pb2
from sandpool.v1 import session_pb2 as end
from service_kit import failpoint
from service_kit.errors import SandpoolError, Unavailable

T = TypeVar("T")
log = structlog.get_logger("fleet")

Reason: TypeAlias = end.EndReason.ValueType
# A node that has destroyed a VM says why in its Watch, at about the same time as in its answer.
REASON_SECONDS = 2.0
STORE_RETRY_SECONDS = 1.0
DESTROY_RETRY_SECONDS = 1.0
ENDED_KEPT = 10_000


class Fleet:
    """One owner of all of it: this event loop. Others subscribe by the callbacks."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.pools: dict[str, Pool] = {}
        self.vms: dict[str, Vm] = {}
        self.links: dict[str, NodeLink] = {}
        # Set once by the composition root: what to do when a pool may need VMs, and when a VM has become something.
        self.on_room: Callable[[Pool], None] = lambda pool: None
        self.on_warm: Callable[[Vm], None] = lambda vm: None
        self.on_assigned: Callable[[Vm], None] = lambda vm: None
        self.on_ended: Callable[[Vm], None] = lambda vm: None
        # A node became ready, or is no more.
        self.on_nodes: Callable[[], None] = lambda: None
        self._ended: OrderedDict[str, Reason] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watches: dict[str, asyncio.Task[Any]] = {}
        # Of two registrations of one node at once, the second finds what the first made.
        self._registering = asyncio.Lock()

    def begin(self, everything: Everything) -> None:
        """Take over what an earlier pool-manager left; nodes say in their snapshots what of it is still true."""
        for pool_row in everything.pools:
            self.pools[pool_row.name] = Pool(pool_row)
        for row in everything.vms:
            vm = self.vms[row.vm_id] = Vm(row, row.state)
            self.pools[row.pool].add(vm)
        for session in everything.sessions:
            vm = self.vms[session.vm_id]
            vm.session = session
            self.pools[session.pool].sessions[session.identifier] = vm
            self.on_assigned(vm)
        for node_row in everything.nodes:
            self._link(node_row)
        for pool in [pool for pool in self.pools.values() if pool.row.deleting]:
            self.on_room(pool)  # it may be empty already

    def tell(self, event: EventRow) -> None:
        """Record what happened and changed no row; in the order of the calls."""
        self.own(self.store.record(event))

    # -- nodes -----------------------------------------------------------------------------------------------------

    async def register(self, row: NodeRow) -> None:
        """Make a node known, durably, and watch it; idempotent while nothing has changed."""
        await self.finish(self._register(row))

    async def _register(self, row: NodeRow) -> None:
        async with self._registering:
            link = self.links.get(row.node_id)
            known = link.row if link is not None else None
            row = replace(row, boot_id=known.boot_id if known is not None else "")
            if row == known:
                return
            await self.store.save_node(row, happened.node_registered(row, self.clock.now()))
            if link is not None:
                self._watches[row.node_id].cancel()
                await asyncio.wait([self._watches[row.node_id]])
            self._link(row)
            if link is not None:  # whoever waits there begins again here
                await link.close()

    def _link(self, row: NodeRow) -> None:
        link = self.links[row.node_id] = NodeLink(row, self)
        self._watches[row.node_id] = self.own(link.run())
        self.on_nodes()

    async def on_snapshot(self, link: NodeLink, snapshot: node.NodeSnapshot) -> None:
        """Reconcile: VMs of the store that are not there have ended, VMs there that are not in the store must go."""
        rebooted = link.row.boot_id not in ("", snapshot.boot_id)
        there = {vm.vm_id: vm for vm in snapshot.vms}
        missing = [
            vm
            for vm in self.vms.values()
            if vm.row.node_id == link.row.node_id and vm.row.vm_id not in there and not vm.creating
        ]
        ends = dict.fromkeys(missing, end.END_REASON_NODE_REBOOTED if rebooted else end.END_REASON_VM_LOST)
        for seen in snapshot.vms:
            vm = self._placed(link, seen.vm_id)
            if vm is not None and seen.state == node.VM_STATE_DESTROYED:
                ends[vm] = _reason_told(vm, seen)
            else:
                self.on_vm(link, seen)
        self.end(ends)
        for vm in ends:
            await vm.gone.wait()
        if link.row.boot_id != snapshot.boot_id:
            link.row = replace(link.row, boot_id=snapshot.boot_id)
            events = [happened.node_rebooted(link.row.node_id, self.clock.now())] if rebooted else []
            await self.store.save_node(link.row, *events)
        for pool in self.pools.values():
            pool.try_again()
        self.tell(happened.node_ready(link.row.node_id, len(there), self.clock.now()))
        asyncio.get_running_loop().call_soon(self.kick_all)

    def on_vm(self, link: NodeLink, change: node.Vm) -> None:
        """One VM became ready or is gone, or is one of which the store knows nothing: that must go."""
        vm = self._placed(link, change.vm_id)
        if change.state == node.VM_STATE_DESTROYED:
            if vm is not None:
                self.end({vm: _reason_told(vm, change)})
        elif vm is None:
            log.warning("orphan_destroyed", vm_id=change.vm_id, node_id=link.row.node_id)
            self.own(link.destroy(change.vm_id, end.END_REASON_ORPHANED))
        else:
            self.pools[vm.row.pool].expect(vm)
            if change.state == node.VM_STATE_READY:
                vm.said_ready = True
                self.own(self.ready(vm))

    def _placed(self, link: NodeLink, vm_id: str) -> Vm | None:
        """The VM of that id if it is one of this node's: no node speaks of the VMs of another."""
        vm = self.vms.get(vm_id)
        return vm if vm is not None and vm.row.node_id == link.row.node_id else None

    def on_ready(self, link: NodeLink) -> None:
        """It takes VMs from now on."""
        self.on_nodes()

    def on_unreachable(self, link: NodeLink, reason: str) -> None:
        """Its warm VMs cannot be assigned now, and those that it makes may never be."""
        self.on_nodes()
        self.tell(happened.node_unreachable(link.row.node_id, reason, self.clock.now()))
        for vm in [vm for vm in self.vms.values() if vm.row.node_id == link.row.node_id]:
            vm.said_ready = vm.confirmed = False
            pool = self.pools[vm.row.pool]
            if pool.withdraw(vm):
                self.on_room(pool)

    def kick_all(self) -> None:
        """Something became free or possible somewhere."""
        for pool in list(self.pools.values()):
            self.on_room(pool)

    # -- the life of a VM ------------------------------------------------------------------------------------------

    async def ready(self, vm: Vm) -> None:
        """Its node has said that it is unique and proven: keep it warm, if that still holds. Idempotent."""
        if vm.state == PROVISIONING:
            await self._insist(lambda: self.store.set_warm(vm.row.vm_id, self.clock.now()))
        if vm.state == PROVISIONING:  # still
            vm.become(WARM)
        if vm.state == WARM and vm.said_ready and not vm.confirmed and not vm.doomed:
            vm.confirmed = True
            self.on_warm(vm)
            self.pools[vm.row.pool].offer(vm)
            self.on_room(self.pools[vm.row.pool])

    async def destroy(self, vm: Vm, reason: Reason) -> None:
        """End a VM whatever goes on in it; returns when that is durable. Raises SandpoolError."""
        self._withdraw(vm)
        link = self.links.get(vm.row.node_id)
        if link is None:
            raise Unavailable("NODE_UNREACHABLE", f"node {vm.row.node_id} is not known")
        await link.destroy(vm.row.vm_id, reason)
        await self.ended(vm, await self.reason_of(vm, reason))

    async def reason_of(self, vm: Vm, default: Reason) -> Reason:
        """Why a VM that its node has destroyed has ended, as the node says."""
        try:
            async with asyncio.timeout(REASON_SECONDS):
                await vm.ended.wait()
        except TimeoutError:
            return default
        return vm.end_reason or default

    def destroy_soon(self, vm: Vm, reason: Reason) -> None:
        """As destroy, by a task of ours that does not give up: nobody gets this VM any more."""
        self._withdraw(vm)
        if not vm.doomed:
            vm.doomed = True
            self.own(self._destroy_some_day(vm, reason))

    async def _destroy_some_day(self, vm: Vm, reason: Reason) -> None:
        while not vm.gone.is_set():
            try:
                await self.destroy(vm, reason)
            except SandpoolError as error:  # its node cannot be reached, and may say meanwhile that it is gone
                log.warning("destroy_failed", vm_id=vm.row.vm_id, error=str(error))
                await asyncio.sleep(DESTROY_RETRY_SECONDS)

    def take_back(self, vm: Vm) -> None:
        """The store refused to assign a VM: it has served nobody."""
        if vm.state == ASSIGNED and vm.confirmed and not vm.doomed:
            vm.become(WARM)
            self.pools[vm.row.pool].offer(vm)
            self.on_room(self.pools[vm.row.pool])
        else:
            self.destroy_soon(vm, end.END_REASON_ORPHANED)

    def _withdraw(self, vm: Vm) -> None:
        pool = self.pools.get(vm.row.pool)
        if pool is not None:  # else it is gone with its last VM, which was this one
            pool.withdraw(vm)

    async def ended(self, vm: Vm, reason: Reason, detail: str = "") -> None:
        """A VM is confirmed to be gone, and so is its session: durably, then in memory. Idempotent."""
        if vm.state != DESTROYED:
            vm.end_detail = detail
        self.end({vm: reason})
        await vm.gone.wait()

    def end(self, reasons: Mapping[Vm, Reason]) -> None:
        """As ended, for many at once, in one transaction that nobody has to wait for."""
        was = {vm: vm.state for vm in reasons if vm.state != DESTROYED}
        for vm in was:
            vm.become(DESTROYED)
            self.on_ended(vm)
            vm.end_reason = reasons[vm]
        if was:
            self.own(self._end(was))

    async def _end(self, was: Mapping[Vm, str]) -> None:
        failpoint.reach(failpoint.Place.VM_DESTROYED)
        rows = {vm.row.vm_id: (int(vm.end_reason), vm.end_detail) for vm in was}
        await self._insist(lambda: self.store.end_vms(rows, self.clock.now()))
        for vm, state in was.items():
            metrics.count_end(vm.row.pool, vm.end_reason)
            reason = end.EndReason.Name(vm.end_reason)
            log.info("vm_ended", vm_id=vm.row.vm_id, pool=vm.row.pool, was=state, reason=reason)
            self.vms.pop(vm.row.vm_id, None)
            self.pools[vm.row.pool].remove(vm)
            vm.gone.set()
            self._ended[vm.row.vm_id] = vm.end_reason
        while len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        self.kick_all()

    @staticmethod
    async def _insist(write: Callable[[], Awaitable[None]]) -> None:
        """A full disk: what is true has to be told to the store some day."""
        while True:
            try:
                return await write()
            except Unavailable as error:
                log.error("store_unavailable", error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)

    def reason_of_ended(self, vm_id: str) -> Reason:
        """Why a VM has ended that is no more; VM_LOST if that was too long ago."""
        return self._ended.get(vm_id, end.END_REASON_VM_LOST)

    # -- pools -----------------------------------------------------------------------------------------------------

    async def save_pool(self, row: PoolRow, was: PoolRow | None, event: EventRow) -> Pool:
        """Insert (was: None) or change, durably. Raises Conflict: it is another one by now."""
        return await self.finish(self._save_pool(row, was, event))

    async def _save_pool(self, row: PoolRow, was: PoolRow | None, event: EventRow) -> Pool:
        await self.store.save_pool(row, was, event)
        pool = self.pools.get(row.name)
        if pool is None:
            pool = self.pools[row.name] = Pool(row)
        else:
            pool.change(row)
        self.on_room(pool)
        return pool

    async def delete_pool(self, pool: Pool, event: EventRow) -> None:
        """No session begins from now on, durably. Raises Conflict, Unavailable: they may again."""
        pool.close()
        await self.finish(self._delete_pool(pool, event))

    async def _delete_pool(self, pool: Pool, event: EventRow) -> None:
        try:
            await self._save_pool(replace(pool.row, deleting=True), pool.row, event)
        finally:
            pool.closing = pool.row.deleting

    async def remove_pool_if_empty(self, pool: Pool) -> None:
        """The end of a deleted pool; its name is free once that is durable."""
        if pool.row.deleting and not pool.vms and not pool.starting and not pool.removing:
            pool.removing = True
            event = happened.pool_removed(pool.row.name, self.clock.now())
            await self._insist(lambda: self.store.remove_pool(pool.row.name, event))
            del self.pools[pool.row.name]
            log.info("pool_removed", pool=pool.row.name)

    def set_condition(
        self, pool: Pool, kind: pool_pb2.PoolConditionType.ValueType, reason: str, message: str = ""
    ) -> None:
        """Something is true of a pool from now on, or true still."""
        old = pool.conditions.get(kind)
        if old is not None and old.reason == reason:
            old.message = message
            return
        pool.conditions[kind] = Condition(reason, message, self.clock.now())
        self.tell(happened.condition(True, pool.row.name, kind, reason, message, self.clock.now()))

    def clear_condition(self, pool: Pool, kind: pool_pb2.PoolConditionType.ValueType, reason: str = "") -> None:
        """It is true no more; with a reason, only if it was for that one. Idempotent."""
        old = pool.conditions.get(kind)
        if old is not None and reason in ("", old.reason):
            del pool.conditions[kind]
            self.tell(happened.condition(False, pool.row.name, kind, old.reason, "", self.clock.now()))

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work to its end even if this caller leaves: what has become durable must become true here as well."""
        task = self._keep(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)  # nobody else hears of it
            raise

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work as a task that close() ends."""
        task = self._keep(work)
        task.add_done_callback(_log_failure)
        return task

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Let go of everything; what is durable stays."""
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self.links.values():
            await link.close()


def _log_failure(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, SandpoolError):  # an answer, as that a pool is being deleted, and no fault
        log.warning("task_refused", reason=error.reason, error=error.message)
    elif error is not None:
        log.error("task_failed", error=repr(error), exc_info=error)


def _reason_told(vm: Vm, told: node.Vm) -> Reason:
    """Why a VM has ended, as its node says: one of a later version may have reasons that are not known here."""
    known = told.end_reason in end.EndReason.values() and told.end_reason != end.END_REASON_UNSPECIFIED
    if known:
        vm.end_reason = told.end_reason
    vm.end_detail = told.detail
    vm.ended.set()
    return told.end_reason if known else end.END_REASON_VM_LOST
