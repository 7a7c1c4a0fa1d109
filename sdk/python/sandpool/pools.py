"""Pools and their settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Unpack

import grpc

from sandpool.calls import call, pages
from sandpool.errors import ConnectionLost, NotFound, PoolNotFound
from sandpool.settings import Settings, spec_of
from sandpool.v1 import pool_pb2 as pb
from sandpool.v1 import pool_pb2_grpc

POLL_SECONDS = 0.2


class Pools:
    """client.pools. Every call raises SandpoolError."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float | None) -> None:
        self._stub: pool_pb2_grpc.PoolServiceAsyncStub = pool_pb2_grpc.PoolServiceStub(channel)
        self._timeout = timeout

    async def create(self, name: str, spec: pb.PoolSpec | None = None, **settings: Unpack[Settings]) -> pb.Pool:
        """Make a pool: create("mine", ready_target=4, memory_bytes=1 << 30). Idempotent with identical settings."""
        request = pb.CreatePoolRequest(name=name, spec=spec_of(settings, spec)[0])
        return (await call(self._stub.Create, request, self._timeout)).pool

    async def get(self, name: str) -> pb.Pool:
        """One pool, with its counts and conditions."""
        return (await call(self._stub.Get, pb.GetPoolRequest(name=name), self._timeout)).pool

    async def list(self) -> AsyncIterator[pb.Pool]:
        """Every pool, by name."""

        async def fetch(token: str) -> pb.ListPoolsResponse:
            return await call(self._stub.List, pb.ListPoolsRequest(page_size=1000, page_token=token), self._timeout)

        async for pool in pages(fetch, "pools"):
            yield pool

    async def update(
        self,
        name: str,
        spec: pb.PoolSpec | None = None,
        *fields: str,
        expected_generation: int | None = None,
        **settings: Unpack[Settings],
    ) -> pb.Pool:
        """Change settings by keyword: update("mine", cooldown=60); or the named fields of a PoolSpec.

        See PoolService.Update for whom a change concerns. expected_generation: only if the pool is at that one.
        """
        merged, paths = spec_of(settings, spec)
        request = pb.UpdatePoolRequest(name=name, spec=merged, expected_generation=expected_generation)
        request.update_mask.paths.extend([*fields, *paths])
        # A repeat that sets the same again is none; one that expects a generation would meet its own.
        repeatable = expected_generation is None
        return (await call(self._stub.Update, request, self._timeout, repeatable=repeatable, forwarded=True)).pool

    async def delete(self, name: str, *, force: bool = False) -> None:
        """No new sessions from now on; gone with the last VM. force ends live sessions."""
        request = pb.DeletePoolRequest(name=name, force=force)
        try:
            await call(self._stub.Delete, request, self._timeout, repeatable=False, forwarded=True)
        except ConnectionLost:
            with suppress(PoolNotFound):  # it was done, and an empty pool is gone at once
                await call(self._stub.Delete, request, self._timeout)

    async def until_ready(self, name: str, report: Callable[[pb.Pool], None] = lambda _: None) -> pb.Pool:
        """Wait until ready_target VMs of its latest settings are warm, or as many as max_sessions leaves room for.

        report gets the pool again and again. Bound it by asyncio.timeout: a pool may never get there, and its
        conditions say why.
        """
        while True:
            pool = await self.get(name)
            report(pool)
            if is_ready(pool):
                return pool
            await asyncio.sleep(POLL_SECONDS)

    async def until_gone(self, name: str) -> None:
        """Wait until a pool that is being deleted is no more."""
        while True:
            try:
                await self.get(name)
            except NotFound:
                return
            await asyncio.sleep(POLL_SECONDS)


def is_ready(pool: pb.Pool) -> bool:
    """Whether all that is to be warm is."""
    counts, spec = pool.counts, pool.spec
    room = max(0, spec.max_sessions - counts.assigned - counts.sealed)
    return counts.warm - counts.outdated >= min(spec.ready_target, room)
