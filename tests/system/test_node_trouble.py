"""A node agent whose template vanishes, whose disk is full, or that is killed while it builds: on the fake driver."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.drivers.fake.driver import TEMPLATE_FILE
from sandpool import AsyncClient, SessionEnded, SessionLost
from sandpool.node.v1 import node_pb2, node_pb2_grpc
from sandpool.v1 import pool_pb2
from service_kit import rpc
from service_kit.failpoint import VARIABLE, Place

from .conftest import Installation, processes, start, stop

pytestmark = [pytest.mark.vm]


@dataclass(frozen=True)
class Node:
    """An installation that builds its own templates."""

    running: Installation
    cache: Path
    places: Path

    @property
    def templates(self) -> list[str]:
        """Those that are complete, and builds."""
        return [path.name for path in (self.cache / "templates").iterdir() if path.is_dir()]

    def builders(self) -> list[str]:
        """Processes that work on templates."""
        return [line for _, line in processes() if str(self.cache / "templates") in line]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    base = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    cache, places = base / "c", base / "p"
    cache.mkdir()
    places.mkdir()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(VARIABLE, str(places))
        running = start("--driver", "fake", "--no-default-pool", "--cache-dir", str(cache))
    yield Node(running, cache, places)
    stop(running)
    shutil.rmtree(base)


async def until_warm(client: AsyncClient, pool: str) -> None:
    """Until its one VM is."""
    while (await client.pools.get(pool)).counts.warm < 1:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def test_killed_while_a_template_boots(node: Node) -> None:
    (node.places / Place.TEMPLATE_BOOTED).touch()
    async with AsyncClient(node.running.address) as client:
        await client.pools.create("pool", pool_pb2.PoolSpec(ready_target=1))
        await until_warm(client, "pool")
    assert list(node.places.iterdir()) == []
    assert len(node.templates) == 1 and node.builders() == []


@pytest.mark.parametrize("is_lost", ["all of it", "a file of it"])
async def test_a_template_that_has_vanished_is_made_again(node: Node, is_lost: str) -> None:
    async with AsyncClient(node.running.address) as client:
        await client.pools.create("pool", pool_pb2.PoolSpec(ready_target=1))
        await until_warm(client, "pool")
        (name,) = node.templates
        if is_lost == "all of it":
            shutil.rmtree(node.cache / "templates" / name)
        else:
            (node.cache / "templates" / name / TEMPLATE_FILE).unlink()
        session = client.session("pool")
        assert (await session.run("6 * 7")).value == "42"
        await until_warm(client, "pool")
        await session.stop()
    assert node.templates == [name]


async def test_a_full_disk_keeps_no_vm_alive_and_takes_no_new_one(node: Node) -> None:
    async with AsyncClient(node.running.address) as client:
        await client.pools.create("pool", pool_pb2.PoolSpec(ready_target=1))
        await until_warm(client, "pool")
        session = client.session("pool")
        vm_id = (await session.run("1")).started.vm_id
        await until_warm(client, "pool")
        agent = node.running.pid_of("-m node_agent --config")
        limits = resource.prlimit(agent, resource.RLIMIT_FSIZE)
        resource.prlimit(agent, resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            await session.stop()
            assert not (node.running.state_dir / "node" / "vms" / vm_id).exists()
            other = client.session("pool")
            await other.run("1")
            while not (conditions := (await client.pools.get("pool")).conditions):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert "journal cannot be written" in conditions[0].message
            # A VM that is tried again counts meanwhile.
            while [one.vms async for one in client.nodes()] != [1]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            resource.prlimit(agent, resource.RLIMIT_FSIZE, limits)
        await until_warm(client, "pool")
        await other.stop()


async def test_a_vm_is_ended_for_a_reason_that_only_a_later_version_knows(node: Node) -> None:
    address = f"unix:{node.running.state_dir}/run/node-agent.sock"
    async with AsyncClient(node.running.address) as client, rpc.open_channel(address) as channel:
        await client.pools.create("pool", pool_pb2.PoolSpec(ready_target=1))
        session = client.session("pool")
        vm_id = (await session.run("1")).started.vm_id
        request = node_pb2.DestroyVmRequest(vm_id=vm_id, reason=99)
        assert (await node_pb2_grpc.NodeAgentServiceStub(channel).DestroyVm(request)).destroyed
        # The latter if the connection breaks only after the call was sent.
        with pytest.raises((SessionEnded, SessionLost)) as caught:
            await session.run("1")
        assert caught.value.end_reason == "VM_LOST"
        await until_warm(client, "pool")


async def test_a_tunnel_that_dies_is_started_again_whatever_became_of_its_record(node: Node) -> None:
    async with AsyncClient(node.running.address) as client:
        await client.pools.create("pool", pool_pb2.PoolSpec(ready_target=1))
        session = client.session("pool")
        assert (await session.run("x = 6; x")).value == "6"
        tunnel = node.running.pid_of("-m node_agent.tunnel")
        (node.running.state_dir / "node" / "tunnel.json").unlink()
        os.kill(tunnel, signal.SIGKILL)
        assert (await session.run("x * 7")).value == "42"
        assert node.running.pid_of("-m node_agent.tunnel") != tunnel
