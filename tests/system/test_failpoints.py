"""Every service killed at its worst moments, on real VMs: no session is lost, doubled or ended early; nothing leaks."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from sandpool import AsyncClient, AsyncSession, SessionEnded
from sandpool.errors import Unavailable
from sandpool.events import Ended, Started, Stdout
from sandpool.v1 import pool_pb2
from service_kit.failpoint import VARIABLE, Place

from .conftest import Installation, processes, start, stop

pytestmark = [pytest.mark.vm]
T = TypeVar("T")

WARM = 1
# So that the refill which a test provokes is the only one; both pools are made of the same template.
POOLS = {"lasting": 600.0, "brief": 1.0}
LINES = 60
COUNTING = f"import time\nfor n in range({LINES}): print(n, flush=True); time.sleep(0.03)"
UNTIL_TOLD = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)"


@dataclass(frozen=True)
class World:
    """An installation whose places can be armed. served: which session each VM has been seen in."""

    running: Installation
    places: Path
    served: dict[str, str] = field(default_factory=dict)

    def arm(self, place: Place) -> None:
        """The next process to get there is killed."""
        (self.places / place).touch()

    async def killed(self, place: Place) -> None:
        """Wait until one was."""
        while (self.places / place).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def vms(self) -> set[str]:
        """Directories of VMs."""
        return {path.name for path in (self.running.state_dir / "node" / "vms").iterdir()}

    def vmms(self) -> set[str]:
        """Working directories of VMMs, by name; one that has lost its directory is named as it was."""
        return {name for pid, line in processes() if "qemu" in line for name in [self._vm_of(pid)] if name}

    def _vm_of(self, pid: int) -> str:
        try:
            link = str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            return ""
        return link.rpartition("/")[2] if link.startswith(str(self.running.state_dir)) else ""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    places = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(VARIABLE, str(places))
        running = start("--no-default-pool")
    yield World(running, places)
    stop(running)
    shutil.rmtree(places)


@pytest_asyncio.fixture
async def client(world: World) -> AsyncIterator[AsyncClient]:
    """With both pools there and at rest; afterwards every session is ended, and whatever is left then is a leak."""
    async with AsyncClient(world.running.address) as connected:
        for name, cooldown in POOLS.items():
            spec = pool_pb2.PoolSpec(ready_target=WARM if name == "lasting" else 0)
            spec.cooldown.FromMilliseconds(int(cooldown * 1000))
            await connected.pools.create(name, spec)
        await rest(world, connected)
        yield connected
        for name in POOLS:
            for one in [one async for one in connected.sessions(name)]:
                await insist(connected.session(name, one.identifier).stop)
        await rest(world, connected)
    assert list(world.places.iterdir()) == []


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """While a service is away nothing runs: until it is back."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.05)


async def rest(world: World, client: AsyncClient) -> None:
    """Until only WARM VMs are left, for everybody who counts: the test's own time limit ends this."""
    while True:
        pools = [await insist(lambda name=name: client.pools.get(name)) for name in POOLS]  # type: ignore[misc]
        counts = [(pool.counts.warm, pool.counts.provisioning, pool.counts.assigned) for pool in pools]
        (node,) = [node async for node in client.nodes()]
        quiet = counts == [(WARM, 0, 0), (0, 0, 0)] and node.vms == len(world.vms()) == WARM
        if quiet and world.vms() == world.vmms() and node.reserved.cpu_millis == 1000 * WARM:
            return
        await asyncio.sleep(0.1)


async def enter(world: World, session: AsyncSession) -> str:
    """The session's VM: nobody has been there before, and it is the same one at every call."""
    name = session.identifier
    result = await insist(lambda: session.run(f"before = globals().get('mine')\nmine = {name!r}\nbefore"))
    vm_id = str(result.started.vm_id)
    assert result.ok and result.value in (None, repr(name))
    assert world.served.setdefault(vm_id, name) == name
    return vm_id


async def take(world: World, client: AsyncClient) -> None:
    """A session more: it takes the warm VM, so that another is made."""
    await enter(world, client.session("lasting"))


async def idle_out(world: World, client: AsyncClient) -> None:
    """A session whose cooldown passes: it ends as idle, whoever was killed meanwhile."""
    session = client.session("brief")
    await enter(world, session)
    await ended_as_idle(client, session)


async def ended_as_idle(client: AsyncClient, session: AsyncSession) -> None:
    """Until no session of the brief pool is left; this one says why."""
    while await insist(lambda: listed(client)):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert await reason(session) == "IDLE"


async def reason(session: AsyncSession) -> str:
    """Why it has ended."""
    with pytest.raises(SessionEnded) as caught:
        await insist(lambda: session.run("1"))
    return str(caught.value.end_reason)


async def listed(client: AsyncClient) -> list[str]:
    """Sessions of the brief pool."""
    return [one.identifier async for one in client.sessions("brief")]


Trigger = Callable[[World, AsyncClient], Awaitable[None]]
AT: dict[Place, Trigger] = {
    Place.VM_JOURNALED: take,
    Place.VM_SPAWNED: take,
    Place.VM_CLONED: take,
    Place.VM_ADDED: take,
    Place.VM_CHOSEN: take,
    Place.SESSION_COMMITTED: take,
    Place.ROUTE_ACQUIRED: take,
    Place.VM_SEALED: idle_out,
    Place.SEAL_JOURNALED: idle_out,
    Place.VM_KILLED: idle_out,
    Place.VM_DESTROYED: idle_out,
}
IN_MID_STREAM = (Place.EVENT_SENT, Place.BYTES_RELAYED)
# Tried in test_node_trouble, where a template is made in a second.
ELSEWHERE = {Place.TEMPLATE_BOOTED}
EVERYWHERE = set(AT) | set(IN_MID_STREAM) | ELSEWHERE


def test_every_place_is_tried() -> None:
    assert set(Place) == EVERYWHERE


@pytest.mark.parametrize("place", AT)
async def test_killed_there(world: World, client: AsyncClient, place: Place) -> None:
    kept = client.session("lasting")
    vm_id = await enter(world, kept)
    while (await client.pools.get("lasting")).counts.warm < WARM:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    world.arm(place)
    await asyncio.gather(AT[place](world, client), world.killed(place))
    assert await enter(world, kept) == vm_id
    await take(world, client)
    assert await enter(world, kept) == vm_id


@pytest.mark.parametrize("place", [Place.VM_KILLED, Place.VM_DESTROYED])
async def test_killed_while_a_session_is_stopped(world: World, client: AsyncClient, place: Place) -> None:
    session = client.session("lasting")
    await enter(world, session)
    world.arm(place)
    await asyncio.gather(insist(session.stop), world.killed(place))
    assert await reason(session) == "STOPPED"


@pytest.mark.parametrize("place", IN_MID_STREAM)
async def test_killed_in_mid_stream(world: World, client: AsyncClient, place: Place) -> None:
    session = client.session("lasting")
    vm_id = await enter(world, session)
    output, starts, ends = b"", 0, 0
    async for event in session.stream(COUNTING):
        starts, ends = starts + isinstance(event, Started), ends + isinstance(event, Ended)
        if isinstance(event, Stdout):
            if not output:
                world.arm(place)
            output += event.data
    assert (starts, ends, output) == (1, 1, b"".join(b"%d\n" % n for n in range(LINES)))
    await world.killed(place)
    assert await enter(world, session) == vm_id


async def test_what_a_dead_pool_manager_knew_of_deadlines_is_found_out_again(world: World, client: AsyncClient) -> None:
    session = client.session("brief")
    vm_id = await enter(world, session)
    world.arm(Place.SESSION_COMMITTED)
    busy = asyncio.create_task(insist(lambda: session.run(UNTIL_TOLD)))
    await asyncio.gather(take(world, client), world.killed(Place.SESSION_COMMITTED))
    await asyncio.sleep(2 * POOLS["brief"])  # it is busy, however long ago it was acquired
    await insist(lambda: session.files.write("go", b""))
    assert (await busy).started.vm_id == vm_id
    assert await enter(world, session) == vm_id
    await ended_as_idle(client, session)
