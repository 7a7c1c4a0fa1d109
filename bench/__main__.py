"""`make bench`: every row, a table, and build/bench.json. Exit code 1 if a row is missing."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from bench import bursts, control, deadlines, execute, many, streams, vms
from bench.installation import installation
from bench.rows import Row, report
from sandpool import AsyncClient
from service_kit import log


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
        rows += await bursts.rows(up, template)
        rows += await vms.rows(up, template)
        rows.append(await execute.emulated(up))
    rows.append(await many.concurrency())
    return rows


if __name__ == "__main__":
    log.configure("bench", logging.WARNING)
    sys.exit(report(asyncio.run(measure()), Path("build/bench.json")))
