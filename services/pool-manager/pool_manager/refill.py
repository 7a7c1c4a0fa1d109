"""Keeps pools warm: every event that may have made room or need begins the creations that are missing, no tick does."""

from __future__ import annotations

import asyncio
import os
import random
import time

import structlog
from google.protobuf import duration_pb2

from pool_manager import metrics, ulid
from pool_manager.fleet import Fleet
from pool_manager.model import ASSIGNED, PROVISIONING, WARM, Pool, Vm
from pool_manager.node_link import NodeLink
from pool_manager.store import VmRow
from sandpool.node.v1 import node_pb2 as node
from sandpool.v1 import pool_pb2, session_pb2
from service_kit import failpoint
from service_kit.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, SandpoolError, Unavailable

log = structlog.get_logger("refill")

# Creations of one pool at a time: more would only wait in the node.
MAX_CREATING = 8
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
# A VM lives so much longer than its pool's max_lifetime as it may have waited warm; the session's own limit is ours.
MAX_WARM_SECONDS = 3600.0

NOT_PROGRESSING = pool_pb2.POOL_CONDITION_TYPE_NOT_PROGRESSING
BUILDING_TEMPLATE = pool_pb2.POOL_CONDITION_TYPE_BUILDING_TEMPLATE
AT_CAPACITY = pool_pb2.POOL_CONDITION_TYPE_AT_CAPACITY


def backoff_seconds(failures: int, jitter: float) -> float:
    """Doubles with every failure in a row; jitter is 0 to 1."""
    return min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)


class Refill:
    """Creates what pools are short of and destroys what they have too many of."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._timers: dict[Pool, asyncio.TimerHandle] = {}

    def kick(self, pool: Pool) -> None:
        """Look at a pool: to be called after every event that may matter to it. Cheap when nothing is to be done."""
        if self._fleet.pools.get(pool.row.name) is not pool:
            return
        if pool.closing:
            if pool.row.deleting:
                self._drain(pool)
            return
        for vm in pool.surplus():
            self._fleet.destroy_soon(vm, session_pb2.END_REASON_SUPERSEDED)
        if pool.is_full():
            self._fleet.set_condition(
                pool, AT_CAPACITY, "MAX_SESSIONS", f"it has its {pool.spec.max_sessions} sessions"
            )
        else:
            self._fleet.clear_condition(pool, AT_CAPACITY, "MAX_SESSIONS")
        wait = pool.not_before - time.monotonic()
        if wait > 0:
            self._later(pool, wait)
            return
        for _ in range(min(pool.shortage(), MAX_CREATING - pool.coming())):
            pool.starting += 1
            self._fleet.own(self._create(pool))

    def _drain(self, pool: Pool) -> None:
        """Whatever is left in a deleted pool goes."""
        for vm in list(pool.vms.values()):
            if vm.state in (WARM, ASSIGNED):
                self._fleet.destroy_soon(vm, session_pb2.END_REASON_POOL_DELETED)
        self._fleet.own(self._fleet.remove_pool_if_empty(pool))

    def _later(self, pool: Pool, seconds: float) -> None:
        if pool not in self._timers:

            def fire() -> None:
                del self._timers[pool]
                self.kick(pool)

            self._timers[pool] = asyncio.get_running_loop().call_later(seconds, fire)

    async def _create(self, pool: Pool) -> None:
        begun = time.monotonic()
        try:
            try:
                vm, link, spec = await self._begin(pool)
            finally:
                pool.starting -= 1
            failpoint.reach(failpoint.Place.VM_ADDED)
            try:
                await link.create(_request(spec, vm))
            except SandpoolError as error:
                await self._clean_up(vm, error)
                raise
            finally:
                vm.creating = False
            if link.ready:  # else what it said may be true no more: its next snapshot says it again
                vm.said_ready = True
                await self._fleet.ready(vm)
        except SandpoolError as error:
            metrics.count_creation(pool.row.name, error.reason, None)
            self._failed(pool, error)
        else:
            metrics.count_creation(pool.row.name, "ready", time.monotonic() - begun)
            pool.try_again()
            self._fleet.clear_condition(pool, NOT_PROGRESSING)
            self._fleet.clear_condition(pool, AT_CAPACITY, "NO_CAPACITY")
        self.kick(pool)

    async def _begin(self, pool: Pool) -> tuple[Vm, NodeLink, pool_pb2.PoolSpec]:
        """Choose a node, and make the row that comes before the VM; both are of one generation."""
        link, generation = None, 0
        while link is None or not link.ready or generation != pool.row.generation:  # a template may take minutes
            link, spec, generation = self._place(pool), pool.spec, pool.row.generation
            template_id = await self._template(pool, link, spec)
        if pool.closing:
            raise FailedPrecondition("POOL_DELETING", "the pool is being deleted")
        vm_id = ulid.encode(int(time.time() * 1000), os.urandom(10))
        row = VmRow(
            vm_id, pool.row.name, generation, link.row.node_id, template_id, PROVISIONING, self._fleet.clock.now()
        )
        vm = Vm(row, PROVISIONING, creating=True)
        self._fleet.vms[vm_id] = vm
        pool.add(vm)
        try:
            await self._fleet.store.add_vm(row)
        except BaseException:
            del self._fleet.vms[vm_id]
            pool.remove(vm)
            raise
        return vm, link, spec

    def _place(self, pool: Pool) -> NodeLink:
        """The node with the most memory left. Raises Unavailable, ResourceExhausted."""
        ready = [link for link in self._fleet.links.values() if link.ready]
        if not ready:
            raise Unavailable("NO_NODE", "no node is ready")

        def left(link: NodeLink) -> int:
            return link.node.capacity.memory_bytes - link.node.reserved.memory_bytes

        best = max(ready, key=left)
        if left(best) < pool.spec.resources.memory_bytes:
            raise ResourceExhausted("NO_CAPACITY", "no node has enough memory left")
        return best

    async def _template(self, pool: Pool, link: NodeLink, spec: pool_pb2.PoolSpec) -> str:
        def progress(message: str) -> None:
            self._fleet.set_condition(pool, BUILDING_TEMPLATE, "BUILDING_TEMPLATE", message)

        try:
            return await link.template(spec.template, spec.resources, progress)
        finally:
            self._fleet.clear_condition(pool, BUILDING_TEMPLATE)

    async def _clean_up(self, vm: Vm, error: SandpoolError) -> None:
        """What came of a CreateVm that failed: nothing if the node says so, else destroy what may be there."""
        if isinstance(error, Unavailable | DeadlineExceeded):
            self._fleet.destroy_soon(vm, session_pb2.END_REASON_CREATE_FAILED)
        else:
            await self._fleet.ended(vm, session_pb2.END_REASON_CREATE_FAILED, f"{error.reason}: {error.message}")

    def _failed(self, pool: Pool, error: SandpoolError) -> None:
        if pool.closing:
            return
        pool.fail(time.monotonic(), lambda failures: backoff_seconds(failures, random.random()))
        if error.reason in ("NODE_FULL", "NO_CAPACITY"):
            self._fleet.set_condition(pool, AT_CAPACITY, "NO_CAPACITY", error.message)
        else:
            self._fleet.set_condition(pool, NOT_PROGRESSING, error.reason, error.message)
        log.warning("refill_failed", pool=pool.row.name, reason=error.reason, failures=pool.failures)


def _request(spec: pool_pb2.PoolSpec, vm: Vm) -> node.CreateVmRequest:
    lifetime = duration_pb2.Duration()
    lifetime.FromNanoseconds(spec.max_lifetime.ToNanoseconds() + int(MAX_WARM_SECONDS * 1e9))
    return node.CreateVmRequest(
        vm_id=vm.row.vm_id,
        template_id=vm.row.template_id,
        max_lifetime=lifetime,
        resources=spec.resources,
        background_is_activity=spec.background_is_activity,
    )
