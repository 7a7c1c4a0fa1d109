"""sandpool.v1.PoolService and NodeService."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from pool_manager import convert, happened, pool_spec
from pool_manager.acquire import Acquirer
from pool_manager.fleet import Fleet
from pool_manager.paging import page
from pool_manager.store import Conflict, PoolRow
from sandpool.v1 import node_pb2, node_pb2_grpc, pool_pb2, pool_pb2_grpc
from service_kit.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound

Context = Any


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """Settings; what they cause is the refill's."""

    def __init__(self, fleet: Fleet, acquirer: Acquirer) -> None:
        self._fleet = fleet
        self._acquirer = acquirer

    async def Create(self, request: pool_pb2.CreatePoolRequest, context: Context) -> pool_pb2.CreatePoolResponse:  # noqa: N802
        """Idempotent with identical settings."""
        name = pool_spec.check_name(request.name)
        spec = pool_spec.complete(request.spec)
        pool = self._fleet.pools.get(name)
        if pool is None:
            row = PoolRow(name, spec.SerializeToString(deterministic=True), 1, False, time.time())
            try:
                pool = await self._fleet.save_pool(row, None, happened.pool_created(name, self._fleet.clock.now()))
            except Conflict:  # made by another call at the same time
                pool = self._acquirer.pool(name, "name")
        if pool.closing:
            raise FailedPrecondition("POOL_DELETING", "the pool of this name is being deleted", field="name")
        if pool.spec != spec:
            raise AlreadyExists("POOL_EXISTS", "a pool of this name has other settings", field="name")
        return pool_pb2.CreatePoolResponse(pool=convert.pool(pool))

    async def Get(self, request: pool_pb2.GetPoolRequest, context: Context) -> pool_pb2.GetPoolResponse:  # noqa: N802
        """One pool."""
        return pool_pb2.GetPoolResponse(pool=convert.pool(self._acquirer.pool(request.name, "name")))

    async def List(self, request: pool_pb2.ListPoolsRequest, context: Context) -> pool_pb2.ListPoolsResponse:  # noqa: N802
        """By name."""
        names, token = page(self._fleet.pools, request.page_size, request.page_token)
        pools = [convert.pool(self._fleet.pools[name]) for name in names]
        return pool_pb2.ListPoolsResponse(pools=pools, next_page_token=token)

    async def Update(self, request: pool_pb2.UpdatePoolRequest, context: Context) -> pool_pb2.UpdatePoolResponse:  # noqa: N802
        """A change of what VMs are made of begins a generation."""
        pool = self._acquirer.pool(request.name, "name")
        if pool.closing:
            raise FailedPrecondition("POOL_DELETING", "the pool is being deleted", field="name")
        if request.HasField("expected_generation") and request.expected_generation != pool.row.generation:
            raise Aborted("GENERATION_CHANGED", f"the pool is at generation {pool.row.generation}")
        spec, new_generation = pool_spec.update(pool.spec, request.spec, request.update_mask)
        serialized = spec.SerializeToString(deterministic=True)
        was, paths = pool.row, list(request.update_mask.paths)
        row = replace(was, spec=serialized, generation=was.generation + new_generation)
        if row != was:
            try:
                pool = await self._fleet.save_pool(
                    row, was, happened.pool_updated(was, row, paths, self._fleet.clock.now())
                )
            except Conflict as error:
                raise Aborted("POOL_CHANGED", "another call changed the pool at the same time") from error
        return pool_pb2.UpdatePoolResponse(pool=convert.pool(pool))

    async def Delete(self, request: pool_pb2.DeletePoolRequest, context: Context) -> pool_pb2.DeletePoolResponse:  # noqa: N802
        """No new sessions from now on; gone with the last VM."""
        pool = self._acquirer.pool(request.name, "name")
        if pool.row.deleting:
            return pool_pb2.DeletePoolResponse()
        if (in_use := pool.in_use()) and not request.force:
            raise FailedPrecondition("POOL_IN_USE", f"it has live sessions ({len(in_use)}); use force", field="force")
        event = happened.pool_deleting(pool.row.name, request.force, self._fleet.clock.now())
        try:
            await self._fleet.delete_pool(pool, event)
        except Conflict as error:
            raise Aborted("POOL_CHANGED", "another call changed the pool at the same time") from error
        return pool_pb2.DeletePoolResponse()


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """What is known of nodes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def List(self, request: node_pb2.ListNodesRequest, context: Context) -> node_pb2.ListNodesResponse:  # noqa: N802
        """By id."""
        names, token = page(self._fleet.links, request.page_size, request.page_token)
        return node_pb2.ListNodesResponse(nodes=[self._describe(name) for name in names], next_page_token=token)

    async def Get(self, request: node_pb2.GetNodeRequest, context: Context) -> node_pb2.GetNodeResponse:  # noqa: N802
        """One node."""
        if request.node_id not in self._fleet.links:
            raise NotFound("NODE_NOT_FOUND", "there is no such node", field="node_id")
        return node_pb2.GetNodeResponse(node=self._describe(request.node_id))

    def _describe(self, node_id: str) -> node_pb2.Node:
        vms = sum(1 for vm in self._fleet.vms.values() if vm.row.node_id == node_id)
        return convert.node(self._fleet.links[node_id], vms)
