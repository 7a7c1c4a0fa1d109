"""`make bench`: every row, a table, and build/bench.json. Exit code 1 if a row is missing."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from bench import control, execute, vms
from bench.installation import installation
from bench.rows import Row, report
from service_kit import log

VMS = 8


async def measure() -> list[Row]:
    """One after the other: they share the CPUs."""
    work = Path(tempfile.mkdtemp(prefix="sandpool-bench-", dir="/tmp"))
    try:
        rows = await control.rows(work)
    finally:
        shutil.rmtree(work)
    async with installation("fake", 1) as up:
        rows += await execute.native(up)
    async with installation("qemu", VMS) as up:
        await _until_full(up.address)
        rows += await vms.rows(up)
        rows.append(await execute.emulated(up))
    return rows


async def _until_full(address: str) -> None:
    from sandpool import AsyncClient

    async with AsyncClient(address) as client:
        while (await client.pools.get("python")).counts.warm < VMS:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    log.configure("bench", logging.WARNING)
    sys.exit(report(asyncio.run(measure()), Path("build/bench.json")))
