"""The same on Cloud Hypervisor, where it and KVM work: `python -m bench.cloud_hypervisor`, into the same file.

In the emulated host everything runs through two layers of emulation: only ratios and memory say something.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import bursts, hibernation, vms
from bench.installation import installation
from bench.rows import Row, report
from node_agent.drivers.cloud_hypervisor import config
from node_agent.drivers.cloud_hypervisor.api import Api
from node_agent.drivers.cloud_hypervisor.bundle import SCRATCH, STATE, Bundle
from node_agent.drivers.cloud_hypervisor.confine import Confinement
from node_agent.drivers.cloud_hypervisor.driver import (
    RESTORED_URL,
    SAVED_MEMORY,
    SAVED_URL,
    SNAPSHOT_SECONDS,
    CloudHypervisorVmm,
)
from node_agent.drivers.cloud_hypervisor.jail import make_jail, put_restored, put_scratch
from node_agent.drivers.cloud_hypervisor.probe import Installation
from node_agent.drivers.cloud_hypervisor.process import API, Start, jail_of, spawn
from node_agent.vmm import MachineSpec
from sandpool import AsyncClient
from service_kit import log

CLONES, BURST = 8, 16
PREFIX = "cloud_hypervisor_"
GOALS = vms.Goals(
    PREFIX, clone_ratio=1.5, clone_ms=vms.FOR_EVER_MS, pandas_ms=vms.FOR_EVER_MS, idle_mib=20, used_mib=28
)
NAMES = tuple(PREFIX + name for name in ("clone", "first_pandas", "idle_memory", "used_memory", "burst_16", "resume"))


async def keep(vmm: CloudHypervisorVmm, template: Path, machine: MachineSpec, work: Path) -> Path:
    """A VM as the VMM itself saves it: all of its memory in a file that a restore reads."""
    home, bundle = work / "h-copied", work / "b-copied"
    for directory in (home, bundle):
        directory.mkdir()
    vm = await vmm.clone(template, machine, home)
    await hibernation.answers(vm.address)
    Bundle.read(home).write(bundle)
    async with await Api.connect(str(home / API)) as api:
        await api.put("vm.pause")
        await api.put("vm.snapshot", {"destination_url": SAVED_URL}, seconds=SNAPSHOT_SECONDS)
    await vm.destroy()
    for name in (STATE, SAVED_MEMORY):
        shutil.move(jail_of(home) / config.SAVED / name, bundle / name)
    shutil.move(jail_of(home) / config.SCRATCH, bundle / SCRATCH)
    shutil.rmtree(home)
    return bundle


async def by_copy(kept: Path, machine: MachineSpec, directory: Path) -> float:
    """Seconds of a restore that reads the memory, to the first answer. As our own user: the rest is as ours."""
    directory.mkdir()
    us = Confinement(os.geteuid(), os.getegid(), tuple(os.getgroups()), is_own=False)

    async def no_cgroup(_directory: Path) -> None:
        return

    begun = time.perf_counter()
    with ExitStack() as files:
        bundle, jail = Bundle.read(kept), make_jail(directory, us)
        await put_scratch(jail, kept / SCRATCH, us)
        root = os.open(bundle.root, os.O_RDONLY | os.O_CLOEXEC)
        files.callback(os.close, root)
        edited = config.clone(bundle.config, machine, config.inherited(root), "")
        del edited["memory"]["zones"][0]["file"]
        put_restored(jail, edited, kept / STATE, us)
        os.link(kept / SAVED_MEMORY, jail / config.RESTORED / SAVED_MEMORY)
        program = Installation("", Path.home() / ".cache" / "sandpool").program()
        vm = spawn(Start(program, us, (root,), with_us=True), directory, no_cgroup)
        try:
            async with await Api.connect(str(directory / API)) as api:
                await api.put("vm.restore", {"source_url": RESTORED_URL}, seconds=SNAPSHOT_SECONDS)
                await api.put("vm.resume")
            await hibernation.answers(vm.address)
            return time.perf_counter() - begun
        finally:
            await vm.destroy()
            shutil.rmtree(directory)


async def measure() -> list[Row]:
    """One after the other: they share the CPUs."""
    async with installation("cloud-hypervisor", CLONES) as up, AsyncClient(up.address) as client:
        await bursts.until_warm(client, CLONES)
        template, vmm = await vms.template(up), CloudHypervisorVmm()
        rows = await vms.rows(up, template, vmm, GOALS)
        rows.append(await bursts.burst(up, template, vmm, f"{PREFIX}burst_16", BURST))
        place = (*vms.machine_of(template), up.state_dir)
        rows.append(await hibernation.resume(f"{PREFIX}resume", vmm, place, partial(keep, vmm), by_copy))
    return rows


if __name__ == "__main__":
    log.configure("bench", logging.WARNING)
    sys.exit(report(asyncio.run(measure()), Path("build/bench.json"), NAMES))
