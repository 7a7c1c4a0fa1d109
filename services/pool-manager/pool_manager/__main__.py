"""Entry point and composition root: `python -m pool_manager --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pool_manager import metrics
from pool_manager.acquire import Acquirer
from pool_manager.clock import Clock
from pool_manager.config import Config
from pool_manager.event_service import EventService
from pool_manager.expiry import Expiry
from pool_manager.fleet import Fleet
from pool_manager.model import Vm
from pool_manager.permissions import Permissions
from pool_manager.pool_service import NodeService, PoolService
from pool_manager.readiness import Readiness
from pool_manager.refill import Refill
from pool_manager.session_service import AssignmentService, NodeRegistryService, SessionService
from pool_manager.sqlite_store import SqliteStore, StoreUnusable
from pool_manager.store import Store
from sandpool.pool.v1 import pool_pb2_grpc as internal
from sandpool.v1 import event_pb2_grpc, node_pb2_grpc, pool_pb2_grpc, session_pb2_grpc
from service_kit import boot, config, log, pages, server, telemetry
from service_kit.errors import Unavailable
from service_kit.metrics import reading


def compose(store: Store, clock: Clock, permissions: Permissions) -> tuple[Fleet, Acquirer, Expiry]:
    """Everything that decides, before it has read the store."""
    fleet = Fleet(store, clock)
    refill, expiry = Refill(fleet), Expiry(fleet)

    def on_warm(vm: Vm) -> None:
        expiry.warm(vm)
        permissions.of(vm)

    fleet.on_room, fleet.on_warm, fleet.on_assigned, fleet.on_ended = (
        refill.kick,
        on_warm,
        expiry.assigned,
        expiry.ended,
    )
    return fleet, Acquirer(fleet), expiry


async def main_async(settings: Config, stopping: asyncio.Event) -> None:
    """Serve until told to stop."""
    store = SqliteStore(settings.store)
    permissions = Permissions(_key(settings.key))
    offset = time.time() - boot.boot_seconds()
    with suppress(Unavailable):  # a disk that is full at the first start after a boot, when every deadline is new
        offset = await store.clock_offset(boot.boot_id(), offset)
    fleet, acquirer, expiry = compose(store, Clock(offset, boot.boot_seconds, time.time), permissions)
    readiness = Readiness(fleet)
    fleet.begin(await store.load())
    fleet.own(expiry.run())
    fleet.own(readiness.run())
    services = {
        "sandpool.v1.PoolService": lambda grpc_server: pool_pb2_grpc.add_PoolServiceServicer_to_server(
            PoolService(fleet, acquirer), grpc_server
        ),
        "sandpool.v1.NodeService": lambda grpc_server: node_pb2_grpc.add_NodeServiceServicer_to_server(
            NodeService(fleet), grpc_server
        ),
        "sandpool.v1.SessionService": lambda grpc_server: session_pb2_grpc.add_SessionServiceServicer_to_server(
            SessionService(fleet, acquirer), grpc_server
        ),
        "sandpool.v1.EventService": lambda grpc_server: event_pb2_grpc.add_EventServiceServicer_to_server(
            EventService(store, fleet.clock, stopping), grpc_server
        ),
        "sandpool.pool.v1.AssignmentService": lambda grpc_server: internal.add_AssignmentServiceServicer_to_server(
            AssignmentService(fleet, acquirer, expiry, permissions), grpc_server
        ),
        "sandpool.pool.v1.NodeRegistryService": lambda grpc_server: internal.add_NodeRegistryServiceServicer_to_server(
            NodeRegistryService(fleet, permissions.public_key), grpc_server
        ),
    }
    try:
        async with (
            server.serve(settings.listen, services, readiness.health) as serving,
            pages.observed(settings.metrics_listen, "pool-manager", readiness.health),
        ):
            server.say_ready("pool-manager", serving)
            with reading(lambda: metrics.read(fleet)):
                await stopping.wait()
    finally:
        await fleet.close()
        await store.close()


def _key(path: Path) -> Ed25519PrivateKey:
    """The key that capabilities are signed with, made at the first start; readable by its owner only."""
    with suppress(FileNotFoundError):
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    part = path.with_name(path.name + ".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key.private_bytes_raw())
        os.fsync(file.fileno())
    part.rename(path)
    return key


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="sandpool-pool-manager", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="TOML file; see pool_manager.config")
    arguments = parser.parse_args()
    log.configure("pool-manager")
    telemetry.configure("pool-manager")
    try:
        settings = config.load(Config, arguments.config)
        with suppress(KeyboardInterrupt):
            server.run(lambda stopping: main_async(settings, stopping))
    except (config.ConfigError, server.ListenRefused, pages.PagesRefused, StoreUnusable) as error:
        sys.exit(f"sandpool-pool-manager: {error}")


if __name__ == "__main__":
    main()
