"""Clones, their first pandas, and their memory: on one driver, beside that driver alone."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from bench.installation import Installation, code, execute, lone_node
from bench.rows import Row, p50
from node_agent.tunnel.dial import dial
from node_agent.vmm import MachineSpec, Vmm
from sandpool.node.v1 import node_pb2, node_pb2_grpc

CLONES = 8
FOR_EVER_MS = 1e9
PANDAS = "import pandas as pd\npd.DataFrame({'a': [1, 2]}).describe()"


async def raw_clone(vmm: Vmm, template: Path, machine: MachineSpec, directory: Path) -> tuple[float, float]:
    """Seconds from nothing to the first answer of the guest, and MiB (PSS), of the driver alone."""
    directory.mkdir()
    begun = time.perf_counter()
    vm = await vmm.clone(template, machine, directory)
    dialled = await asyncio.to_thread(dial, vm.address)
    seconds = time.perf_counter() - begun
    dialled.close()
    memory = pss(int(json.loads((directory / "process.json").read_text())["pid"]))
    await vm.destroy()
    shutil.rmtree(directory)
    return seconds, memory


def pss(pid: int) -> float:
    """Proportional memory of a process, in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no Pss")


def pss_of(up: Installation, vm_id: str) -> float:
    """Of the VMM of a VM."""
    return pss(int(json.loads((up.vms / vm_id / "process.json").read_text())["pid"]))


async def own_clone(stub: node_pb2_grpc.NodeAgentServiceAsyncStub, template: node_pb2.Template, vm_id: str) -> float:
    """Seconds of CreateVm: cloned, unique and proven."""
    request = node_pb2.CreateVmRequest(vm_id=vm_id, template_id=template.template_id, resources=template.resources)
    request.max_lifetime.FromSeconds(600)
    begun = time.perf_counter()
    await stub.CreateVm(request)
    seconds = time.perf_counter() - begun
    await stub.DestroyVm(node_pb2.DestroyVmRequest(vm_id=vm_id))
    return seconds


async def clones(vmm: Vmm, template: node_pb2.Template, work: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds of our own, seconds and MiB of the raw ones: in turn, as both drift."""
    own, raw, memory = [], [], []
    async with lone_node(vmm.name) as stub:
        for number in range(CLONES):
            own.append(await own_clone(stub, template, f"{number:026d}"))
            seconds, mib = await raw_clone(vmm, *machine_of(template), work / f"raw{number}")
            raw.append(seconds)
            memory.append(mib)
    return own, raw, memory


async def first_pandas(up: Installation, vm_ids: list[str]) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the first pandas in fresh VMs, MiB of each after all of them, and seconds of a process of its own."""
    times: list[float] = []
    alone: list[float] = []
    for vm_id in vm_ids:
        async with up.tunnel(vm_id, up.tunnel_address) as channel:
            seconds, ended = await execute(channel, code(PANDAS))
            assert ended.exit_code == 0
            times.append(seconds)
    memory = [pss_of(up, vm_id) for vm_id in vm_ids]  # what they share is shared by all
    async with up.tunnel(vm_ids[0], up.tunnel_address) as channel:
        for _ in range(2):
            request = code("")
            request.command.argv.values.extend(["python3", "-c", PANDAS])
            alone.append((await execute(channel, request))[0])
    return times, memory, alone


async def template(up: Installation) -> node_pb2.Template:
    """What the VMs of the pool are cloned from."""
    snapshot = await up.snapshot()
    (found,) = [one for one in snapshot.templates if one.template_id == snapshot.vms[-1].template_id]
    return found


def machine_of(template: node_pb2.Template) -> tuple[Path, MachineSpec]:
    """Where a template is, and the size of its VMs."""
    resources = template.resources
    machine = MachineSpec(resources.vcpus, resources.memory_bytes, resources.disk_bytes)
    return Path.home() / ".cache" / "sandpool" / "templates" / template.template_id, machine


@dataclass(frozen=True)
class Goals:
    """What is promised of one driver; prefix is of its rows. clone: times the raw restore, and milliseconds at most."""

    prefix: str
    clone_ratio: float
    clone_ms: float
    pandas_ms: float
    idle_mib: float
    used_mib: float


async def rows(up: Installation, template: node_pb2.Template, vmm: Vmm, goals: Goals) -> list[Row]:
    """clone, first_pandas, idle_memory and used_memory."""
    warm = [vm.vm_id for vm in (await up.snapshot()).vms if vm.state == node_pb2.VM_STATE_READY]
    own, raw, raw_memory = await clones(vmm, template, up.state_dir)
    idle = [pss_of(up, vm_id) for vm_id in warm]
    pandas, used, alone = await first_pandas(up, warm)
    value, baseline = p50(own), p50(raw)
    met = value <= goals.clone_ratio * baseline and value < goals.clone_ms
    limit = f" and under {goals.clone_ms:g} ms" if goals.clone_ms < FOR_EVER_MS else ""
    goal = f"at most {goals.clone_ratio:g}x{limit}"
    first, process = p50(pandas), p50(alone)
    name, prefix = "driver alone, one raw clone", goals.prefix
    pandas_goal = f"under {goals.pandas_ms:g} ms" if goals.pandas_ms < FOR_EVER_MS else "stated"
    return [
        Row(f"{prefix}clone", value, "ms", "raw restore + ping", baseline, goal, met, CLONES, 0),
        Row(
            f"{prefix}first_pandas",
            first,
            "ms",
            "own import",
            process,
            pandas_goal,
            first < goals.pandas_ms,
            len(pandas),
            0,
        ),
        _memory(f"{prefix}idle_memory", idle, name, raw_memory, goals.idle_mib),
        _memory(f"{prefix}used_memory", used, name, raw_memory, goals.used_mib),
    ]


def _memory(name: str, values: list[float], baseline_name: str, baseline: list[float], limit: float) -> Row:
    value = statistics.median(values)
    met = value <= limit
    return Row(
        name, value, "MiB", baseline_name, statistics.median(baseline), f"at most {limit:g} MiB", met, len(values), 0
    )
