"""Many sessions: executing at once, and idle with open channels."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.control import InstantNode, pool_manager
from bench.growth import resident
from bench.installation import code, execute
from bench.rows import Row, p50
from node_agent.vmm import GUEST_ADDRESS_FILE, GuestAddress
from sandpool import AsyncClient, AsyncSession, SandpoolError
from sandpool.cli.supervisor import Supervisor
from sandpool.cli.up import Options, services
from sandpool.node.v1 import node_pb2
from sandpool.v1 import pool_pb2, session_pb2
from scheduler.routes import MAX_ROUTES
from service_kit import rpc

SESSIONS, AT_ONCE, ROUNDS = 200, 50, 5
ROUTES, WARM_UP_ROUTES, BEYOND = 1000, 50, 200
HUGE = 1 << 50


@asynccontextmanager
async def roomy(state: Path) -> AsyncIterator[str]:
    """Everything on the fake driver, on a node that lends more than it has. Yields the address."""
    options = Options(state, Path.home() / ".cache" / "sandpool", "127.0.0.1:0", "fake", 0, False)
    (state / "run").mkdir()
    parts = services(options)
    for part in parts:
        if part.name == "node-agent":
            lent: dict[str, Any] = {"cpu_overcommit": 1000, "memory_bytes": HUGE, "disk_bytes": HUGE}
            part.settings = {**part.settings, **lent}
    supervisor = Supervisor(state, parts, lambda text: print(text, file=sys.stderr))
    try:
        await supervisor.start()
        yield next(part.address for part in parts if part.name == "scheduler")
    finally:
        await supervisor.stop()
        supervisor.close()


async def concurrency() -> Row:
    """SESSIONS sessions, AT_ONCE of them executing at any time."""
    state = Path(tempfile.mkdtemp(prefix="sandpool-bench-", dir="/tmp"))
    times: list[float] = []
    failures = 0
    try:
        async with roomy(state) as address, AsyncClient(address) as client:
            await client.pools.create("many", pool_pb2.PoolSpec(ready_target=0, max_sessions=SESSIONS))
            sessions = [client.session("many", f"s{number}") for number in range(SESSIONS)]
            waiting = iter(sessions)

            async def open_some() -> None:
                for session in waiting:
                    while session.epoch is None:
                        try:
                            await session.run("1")
                        except SandpoolError as error:
                            if error.retry_after_seconds is None:
                                raise

            await asyncio.gather(*(open_some() for _ in range(8)))
            calls = iter([session for _ in range(ROUNDS) for session in sessions])

            async def call() -> int:
                return sum([not await timed(session, times) for session in calls])

            failures = sum(await asyncio.gather(*(call() for _ in range(AT_ONCE))))
    finally:
        shutil.rmtree(state, ignore_errors=True)
    ordered = sorted(times)
    middle, late = p50(times), ordered[int(len(ordered) * 0.99)] * 1000
    met = late <= 5 * middle and not failures
    goal = "p99 at most 5x p50, no error"
    return Row("concurrency", late, "ms", "p50 of the same calls", middle, goal, met, len(times), failures)


async def timed(session: AsyncSession, times: list[float]) -> bool:
    """One execution; whether it came to its end."""
    begun = time.perf_counter()
    try:
        result = await session.run("1")
    except SandpoolError:
        return False
    times.append(time.perf_counter() - begun)
    return result.value == "1"


class OneGuest(InstantNode):
    """Every VM is the same guest agent."""

    def __init__(self, vms: Path, socket: Path) -> None:
        self._vms, self._address = vms, GuestAddress("unix", (str(socket),)).to_json()

    async def CreateVm(self, request: node_pb2.CreateVmRequest, context: Any) -> node_pb2.CreateVmResponse:  # noqa: N802
        """Ready at once, for the tunnel as well."""
        directory = self._vms / request.vm_id
        directory.mkdir()
        (directory / GUEST_ADDRESS_FILE).write_text(self._address)
        return await super().CreateVm(request, context)


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[int, str]]:
    """A Python module as a process; its pid, and the last word of the line that says that it is ready."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert started.stdout is not None
        yield started.pid, (await started.stdout.readline()).decode().split()[-1]
    finally:
        started.terminate()
        await started.wait()


async def scheduler_memory(work: Path) -> Row:
    """ROUTES sessions used once and kept open; then more than the scheduler keeps, and the first one again.

    work is made.
    """
    for name in ("vms", "keys"):
        (work / name).mkdir(parents=True)
    sock = work / "guest"
    settings = f'listen = ["unix:{work}/api"]\npool_manager = "unix:{work}/pm"\n'
    (work / "scheduler.toml").write_text(settings)
    async with (
        process("guest_agent", "--unix", str(sock), "--data", str(work / "data")),
        process("node_agent.tunnel", "--vms", str(work / "vms"), "--keys", str(work / "keys")) as (_, tunnel),
        pool_manager(work, ROUTES + BEYOND, OneGuest(work / "vms", sock), tunnel) as (_, key),
        process("scheduler", "--config", str(work / "scheduler.toml")) as (pid, _),
        rpc.open_channel(f"unix:{work}/api") as channel,
    ):
        (work / "keys" / "pool-manager.pub").write_bytes(key)
        failures = await use(channel, range(WARM_UP_ROUTES))
        before = resident(pid)
        failures += await use(channel, range(WARM_UP_ROUTES, ROUTES))
        after = resident(pid)
        failures += await use(channel, range(ROUTES, ROUTES + BEYOND))
        kept = connections(tunnel)
        failures += await use(channel, range(1))  # was closed long ago
    each = (after - before) / (ROUTES - WARM_UP_ROUTES)
    return Row(
        "scheduler_memory",
        each,
        "MiB/route",
        "scheduler with 50 routes (MiB)",
        before,
        f"stated; at most {MAX_ROUTES} channels, reopened on use",
        kept <= MAX_ROUTES and not failures,
        ROUTES,
        failures,
        f"{kept} channels after {ROUTES + BEYOND} sessions",
    )


async def use(channel: grpc.aio.Channel, sessions: range) -> int:
    """Execute once in each; how many failed."""
    failures = 0
    for number in sessions:
        request = code("1")
        request.session.CopyFrom(session_pb2.SessionRef(pool="bench", identifier=f"s{number}"))
        _, ended = await execute(channel, request)
        failures += ended.exit_code != 0
    return failures


def connections(address: str) -> int:
    """Established ones to a port of this host, seen from the side that dialled."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    rows = [line.split() for line in lines]
    return sum(1 for row in rows if row[2].endswith(port) and row[3] == "01")


async def agent_memory(work: Path) -> Row:
    """A guest agent after many connections, each with one execution."""
    sock = work / "agent"
    failures, sizes = 0, []
    async with process("guest_agent", "--unix", str(sock), "--data", str(work / "agent-data")) as (pid, _):
        for count in (100, 900):
            for _ in range(count):
                async with rpc.open_channel(f"unix:{sock}") as channel:
                    _, ended = await execute(channel, code("1"))
                    failures += ended.exit_code != 0
            sizes.append(resident(pid))
    early, late = sizes
    met = late <= 1.2 * early and not failures
    name = "after 100"
    return Row("agent_memory", late, "MiB", name, early, "at most 1.2x after 1,000", met, 1000, failures)
