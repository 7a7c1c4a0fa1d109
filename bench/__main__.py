"""`make bench`: every row, a table, and build/bench.json. Exit code 1 if a row is missing."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from bench import bursts, control, deadlines, execute, hibernation, many, streams, vms
from bench.installation import installation
from bench.rows import NAMES, Row, report
from node_agent.drivers.qemu.driver import QemuVmm
from sandpool import AsyncClient
from service_kit import log

QEMU_GOALS = vms.Goals("", clone_ratio=2, clone_ms=500, pandas_ms=300, idle_mib=50, used_mib=90)


async def measure() -> list[Row]:
    """One after the other: they share the CPUs."""
    work = Path(tempfile.mkdtemp(prefix="sandpool-bench-", dir="/tmp"))
    try:
        rows = [deadlines.expiry(), *await control.rows(work / "control")]
        rows += [await many.scheduler_memory(work / "routes"), await many.agent_memory(work)]
        async with installation("fake", 1) as up:
            rows += await execute.native(up)
            rows += await streams.rows(up, work)
    finally:
        shutil.rmtree(work)
    async with installation("qemu", bursts.BURST) as up, AsyncClient(up.address) as client:
        await bursts.until_warm(client, bursts.BURST)
        template = await vms.template(up)
        qemu = QemuVmm(Path.home() / ".cache" / "sandpool")
        rows += await bursts.rows(up, template, qemu)
        rows += await vms.rows(up, template, qemu, QEMU_GOALS)
        rows.append(await hibernation.qemu_resume(qemu, *vms.machine_of(template), up.state_dir))
        rows.append(await execute.emulated(up))
    rows.append(await many.concurrency())
    return rows


if __name__ == "__main__":
    log.configure("bench", logging.WARNING)
    sys.exit(report(asyncio.run(measure()), Path("build/bench.json"), NAMES))
