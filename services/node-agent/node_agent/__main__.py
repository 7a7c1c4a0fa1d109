"""Entry point and composition root: `python -m node_agent --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

from node_agent import host, metrics
from node_agent.agent import Agent
from node_agent.config import Config
from node_agent.guest import GuestFailed, Guests
from node_agent.images import BuiltImages, NoImages
from node_agent.journal import Journal, read_or_make
from node_agent.ledger import Ledger
from node_agent.readiness import TUNNEL, make_health, prove_driver
from node_agent.registration import register_for_ever
from node_agent.service import NodeAgentService
from node_agent.templates import ImageSource, Templates
from node_agent.tunnel_process import TunnelProcess
from node_agent.vmm import GUEST_ADDRESS_FILE, CloneFailed, GuestAddress, Vmm
from sandpool.node.v1 import node_pb2_grpc
from sandpool.pool.v1 import pool_pb2
from sandpool.v1 import node_pb2
from service_kit import config, failpoint, log, pages, server, telemetry
from service_kit.health import Health
from service_kit.metrics import reading

# A unix socket's path has 107 characters, and those of a VM are the longest: /vms/<26>/jail/vsock
MAX_STATE_PATH = 107 - 45


def choose(settings: Config) -> tuple[Vmm, ImageSource]:
    """The driver by name. Raises ConfigError."""
    if settings.driver == "fake":
        from node_agent.drivers.fake.driver import FakeVmm  # for tests: isolates nothing

        return FakeVmm(), NoImages()
    from node_agent.drivers.choice import ChosenVmm
    from node_agent.drivers.cloud_hypervisor.driver import CloudHypervisorVmm, Settings
    from node_agent.drivers.qemu.driver import QemuVmm
    from sandpool_image.build import make_scratch

    cloud_hypervisor = CloudHypervisorVmm(
        Settings(
            program=settings.cloud_hypervisor,
            cache=settings.cache_dir,
            uid_first=settings.vm_uid_first,
            uid_count=settings.vm_uid_count,
            allow_unconfined=settings.allow_unconfined,
        )
    )
    qemu = QemuVmm(settings.cache_dir)
    drivers: dict[str, Vmm] = {
        "auto": ChosenVmm(cloud_hypervisor, qemu),
        "cloud-hypervisor": cloud_hypervisor,
        "qemu": qemu,
    }
    if settings.driver not in drivers:
        raise config.ConfigError(f"setting 'driver': unknown driver {settings.driver!r}")
    return drivers[settings.driver], BuiltImages(settings.cache_dir, make_scratch)


async def main_async(settings: Config, stopping: asyncio.Event) -> None:
    """Serve until told to stop."""
    state = settings.state_dir
    for directory in (state, state / "keys"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise config.ConfigError(f"{state}: another node agent runs here") from None
        await _serve(settings, stopping)


async def _serve(settings: Config, stopping: asyncio.Event) -> None:
    """Whatever happens after the tunnel is there: an embedded installation leaves nothing."""
    state = settings.state_dir
    tunnel = TunnelProcess(state, settings.tunnel_listen, settings.tunnel_metrics_listen)
    guests, journal = Guests(state / "keys"), Journal(state)
    guests.install_key()
    guests.tunnel_address = await tunnel.ensure()
    ledger = Ledger(host.capacity(state, settings.cpu_overcommit, settings.memory_bytes, settings.disk_bytes))
    vmm, images = choose(settings)
    templates = Templates(settings.cache_dir, vmm, images, quiesce_with(guests, journal))
    agent = Agent(vmm, templates, guests, journal, ledger)
    try:
        templates.remove_unused()
        await templates.remove_abandoned()
        await agent.recover()
        health = make_health()
        describe = partial(_describe, settings, vmm, health)
        service = NodeAgentService(agent, templates, ledger, await describe(), describe)
        with reading(lambda: metrics.read(agent, ledger, agent.changes)):
            await _answer(settings, stopping, service, tunnel, health)
    finally:
        if settings.destroy_on_exit:
            await agent.destroy_all()
            await tunnel.stop()
        await agent.close()


async def _answer(
    settings: Config, stopping: asyncio.Event, service: NodeAgentService, tunnel: TunnelProcess, health: Health
) -> None:
    """Serve and stay registered until told to stop; then end every Watch."""
    name = "sandpool.node.v1.NodeAgentService"
    add = {name: lambda grpc_server: node_pb2_grpc.add_NodeAgentServiceServicer_to_server(service, grpc_server)}
    async with (
        server.serve(settings.listen, add, health) as serving,
        pages.observed(settings.metrics_listen, "node-agent", health),
    ):
        request = pool_pb2.RegisterRequest(
            node_id=service.node.node_id, agent_address=serving.addresses[0], tunnel_address=tunnel.address
        )
        tasks = [
            asyncio.create_task(register_for_ever(settings.pool_manager, request, settings.state_dir / "keys", health)),
            asyncio.create_task(tunnel.keep(partial(health.set, TUNNEL))),
        ]
        server.say_ready("node-agent", serving)
        await stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.close()


async def _describe(settings: Config, vmm: Vmm, health: Health) -> node_pb2.Node:
    """Everything of Node but its state and numbers."""
    acceleration = await prove_driver(vmm, health)
    stored = read_or_make(settings.state_dir / "node_id.json", f"node-{os.urandom(5).hex()}")
    return node_pb2.Node(
        node_id=settings.node_id or stored,
        driver=vmm.name,
        acceleration=acceleration.name,
        acceleration_detail=acceleration.detail,
        version=version("sandpool"),
    )


def quiesce_with(guests: Guests, journal: Journal) -> Callable[[GuestAddress], Awaitable[None]]:
    """What gets the VM of a template ready to be frozen: reached through the tunnel under a name of its own."""

    async def quiesce(address: GuestAddress) -> None:
        vm_id = f"build-{os.urandom(8).hex()}"
        directory = journal.directory(vm_id)
        directory.mkdir(mode=0o700)
        try:
            (directory / GUEST_ADDRESS_FILE).write_text(address.to_json())
            failpoint.reach(failpoint.Place.TEMPLATE_BOOTED)
            await guests.quiesce(vm_id)
        except GuestFailed as error:
            raise CloneFailed(f"template: {error}") from error
        finally:
            journal.bury_directory(directory)

    return quiesce


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="sandpool-node-agent", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="TOML file; see node_agent.config")
    arguments = parser.parse_args()
    log.configure("node-agent")
    telemetry.configure("node-agent")
    try:
        settings = config.load(Config, arguments.config)
        if len(str(settings.state_dir)) > MAX_STATE_PATH:
            raise config.ConfigError(f"setting 'state_dir': too long for sockets, at most {MAX_STATE_PATH} characters")
        with suppress(KeyboardInterrupt):
            server.run(lambda stopping: main_async(settings, stopping))
    except (config.ConfigError, server.ListenRefused, pages.PagesRefused) as error:
        sys.exit(f"sandpool-node-agent: {error}")


if __name__ == "__main__":
    main()
