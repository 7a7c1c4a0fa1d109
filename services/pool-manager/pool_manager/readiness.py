"""What the pool-manager needs to do its work: a store that writes, and a node that takes VMs."""

from __future__ import annotations

import asyncio

import structlog

from pool_manager.fleet import Fleet
from service_kit.errors import Unavailable
from service_kit.health import Health

log = structlog.get_logger("readiness")

STORE, NODES = "store", "nodes"
# While the store cannot write nobody is sent here whose write would show that it can again.
CHECK_SECONDS = 1.0
NEEDED_BY = {
    STORE: (
        "sandpool.v1.PoolService",
        "sandpool.v1.SessionService",
        "sandpool.pool.v1.AssignmentService",
        "sandpool.pool.v1.NodeRegistryService",
    ),
    NODES: ("sandpool.v1.SessionService", "sandpool.pool.v1.AssignmentService"),
}


class Readiness:
    """Tells a Health what becomes of both. Made before the fleet begins."""

    def __init__(self, fleet: Fleet) -> None:
        self.health = Health(NEEDED_BY)
        self._fleet = fleet
        self._broken = asyncio.Event()
        fleet.on_nodes = self._look
        fleet.store.on_writable(self._wrote)
        self._look()

    def _look(self) -> None:
        links = self._fleet.links.values()
        if any(link.ready for link in links):
            self.health.set(NODES, True)
        else:
            known = f"{len(links)} are known, none is ready" if links else "no node has registered"
            self.health.set(NODES, False, known)

    def _wrote(self, writable: bool, why: str) -> None:
        self.health.set(STORE, writable, f"the store cannot write: {why}" if why else "")
        if writable:
            self._broken.clear()
        else:
            self._broken.set()

    async def run(self) -> None:
        """Until cancelled: find out whether the store can write, at the start and again while it is broken."""
        while True:
            try:
                await self._fleet.store.check()
            except Unavailable as error:
                log.info("store_broken", error=str(error))
            await self._broken.wait()
            await asyncio.sleep(CHECK_SECONDS)
