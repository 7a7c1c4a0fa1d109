"""Many clones at once, and a pool that was drained: on one driver, beside that driver alone."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from bench.installation import Installation, lone_node
from bench.rows import Row
from bench.vms import machine_of
from node_agent.tunnel.dial import dial
from node_agent.vmm import MachineSpec, Vmm
from sandpool import AsyncClient
from sandpool.node.v1 import node_pb2, node_pb2_grpc

BURST = 8
RUNS = 3


async def raw_burst(vmm: Vmm, template: Path, machine: MachineSpec, work: Path, count: int) -> float:
    """Seconds until every one of count restores, begun at once, has answered."""

    async def one(directory: Path) -> None:
        directory.mkdir()
        vm = await vmm.clone(template, machine, directory)
        try:
            dialled = await asyncio.to_thread(dial, vm.address)
            dialled.close()
            times.append(time.perf_counter() - begun)
        finally:
            await done.wait()
            await vm.destroy()
            shutil.rmtree(directory)

    times: list[float] = []
    done = asyncio.Event()
    begun = time.perf_counter()
    clones = [asyncio.create_task(one(work / f"burst{number}")) for number in range(count)]
    while len(times) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    done.set()
    await asyncio.gather(*clones)
    return max(times)


async def own_burst(
    stub: node_pb2_grpc.NodeAgentServiceAsyncStub, template: node_pb2.Template, run: int, count: int
) -> float:
    """Seconds of count CreateVm at once: cloned, unique and proven."""
    ids = [f"b{run:012d}{number:013d}" for number in range(count)]
    requests = []
    for vm_id in ids:
        request = node_pb2.CreateVmRequest(vm_id=vm_id, template_id=template.template_id, resources=template.resources)
        request.max_lifetime.FromSeconds(600)
        requests.append(request)
    begun = time.perf_counter()
    await asyncio.gather(*(stub.CreateVm(request) for request in requests))
    seconds = time.perf_counter() - begun
    await asyncio.gather(*(stub.DestroyVm(node_pb2.DestroyVmRequest(vm_id=vm_id)) for vm_id in ids))
    return seconds


async def refill(up: Installation, client: AsyncClient, run: int) -> float:
    """Seconds from a full pool, all of it taken at once, to a full pool again."""
    await until_warm(client, BURST)
    sessions = [client.session("python", f"drain-{run}-{number}") for number in range(BURST)]
    begun = time.perf_counter()
    await asyncio.gather(*(session.ensure() for session in sessions))
    await until_warm(client, BURST)
    seconds = time.perf_counter() - begun
    await asyncio.gather(*(session.stop() for session in sessions))
    return seconds


async def until_warm(client: AsyncClient, count: int) -> None:
    """Of the pool "python"."""
    while (await client.pools.get("python")).counts.warm < count:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def burst(up: Installation, template: node_pb2.Template, vmm: Vmm, name: str, count: int) -> Row:
    """So many at once."""
    raw, own = [], []
    async with lone_node(vmm.name) as stub:
        for run in range(RUNS):
            raw.append(await raw_burst(vmm, *machine_of(template), up.state_dir, count))
            own.append(await own_burst(stub, template, run, count))
    rate, baseline = count / sorted(own)[RUNS // 2], count / sorted(raw)[RUNS // 2]
    goal, met = "at least 0.8x", rate >= 0.8 * baseline
    return Row(name, rate, "1/s", "restores + pings, all at once", baseline, goal, met, RUNS * count, 0)


async def rows(up: Installation, template: node_pb2.Template, vmm: Vmm) -> list[Row]:
    """burst_8 and refill. The pool's ready target is BURST."""
    at_once = await burst(up, template, vmm, "burst_8", BURST)
    async with AsyncClient(up.address) as client:
        refills = [await refill(up, client, run) for run in range(RUNS)]
    full, seconds = sorted(refills)[RUNS // 2], BURST / at_once.value
    met = full <= 1.2 * seconds
    return [at_once, Row("refill", full, "s", "burst_8", seconds, "at most 1.2x", met, RUNS, 0)]
