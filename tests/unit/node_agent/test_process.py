"""Processes that nobody has written down."""

import asyncio
from pathlib import Path

from node_agent.drivers.process import record, unrecorded_pids


async def test_a_process_that_was_never_recorded_is_found_by_where_it_works(tmp_path: Path) -> None:
    vm, link = tmp_path / "vm", tmp_path / "link"
    vm.mkdir()
    link.symlink_to(vm)
    process = await asyncio.create_subprocess_exec("sleep", "1000", cwd=vm)
    assert unrecorded_pids(vm) == unrecorded_pids(link) == [process.pid]
    assert unrecorded_pids(tmp_path) == []
    record(vm, process.pid)
    assert unrecorded_pids(vm) == []
    process.kill()
    await process.wait()
