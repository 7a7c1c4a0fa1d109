"""The same on Cloud Hypervisor, where it and KVM work: `python -m bench.cloud_hypervisor`, into the same file.

In the emulated host everything runs through two layers of emulation: only ratios and memory say something.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from bench import bursts, vms
from bench.installation import installation
from bench.rows import Row, report
from node_agent.drivers.cloud_hypervisor.driver import CloudHypervisorVmm
from sandpool import AsyncClient
from service_kit import log

CLONES, BURST = 8, 16
PREFIX = "cloud_hypervisor_"
GOALS = vms.Goals(
    PREFIX, clone_ratio=1.5, clone_ms=vms.FOR_EVER_MS, pandas_ms=vms.FOR_EVER_MS, idle_mib=20, used_mib=28
)
NAMES = tuple(PREFIX + name for name in ("clone", "first_pandas", "idle_memory", "used_memory", "burst_16"))


async def measure() -> list[Row]:
    """One after the other: they share the CPUs."""
    async with installation("cloud-hypervisor", CLONES) as up, AsyncClient(up.address) as client:
        await bursts.until_warm(client, CLONES)
        template, vmm = await vms.template(up), CloudHypervisorVmm()
        rows = await vms.rows(up, template, vmm, GOALS)
        rows.append(await bursts.burst(up, template, vmm, f"{PREFIX}burst_16", BURST))
    return rows


if __name__ == "__main__":
    log.configure("bench", logging.WARNING)
    sys.exit(report(asyncio.run(measure()), Path("build/bench.json"), NAMES))
