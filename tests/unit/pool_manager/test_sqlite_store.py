"""The embedded store: transactions, epochs, durability, group commit."""

import asyncio
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from pool_manager.sqlite_store import SqliteStore, StoreUnusable
from pool_manager.store import Conflict, EndedRow, NodeRow, PoolRow, SessionRow, VmRow

POOL = PoolRow("python", b"spec", 1, False, 1.0)


def vm(name: str) -> VmRow:
    return VmRow(name, "python", 1, "node", "template", "PROVISIONING", 1.0)


def session(identifier: str, vm_id: str, created_at: float = 100.0) -> SessionRow:
    return SessionRow("python", identifier, 0, vm_id, created_at, created_at + 10, 5.0)


async def test_what_is_written_is_there_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.save_pool(POOL, None)
    await store.save_node(NodeRow("node", "a", "b", "boot"))
    await store.add_vm(vm("v1"))
    await store.set_warm("v1", 2.0)
    epoch, previous = await store.assign(session("alice", "v1"))
    await store.close()
    store = SqliteStore(tmp_path / "s.db")
    everything = await store.load()
    await store.close()
    assert (epoch, previous) == (1, None)
    assert everything.pools == [POOL] and everything.nodes == [NodeRow("node", "a", "b", "boot")]
    assert [row.state for row in everything.vms] == ["ASSIGNED"]
    assert [(row.identifier, row.epoch) for row in everything.sessions] == [("alice", 1)]


async def test_a_vm_serves_one_session_and_a_session_has_one_vm(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    for name in ("v1", "v2"):
        await store.add_vm(vm(name))
    with pytest.raises(Conflict):  # not warm yet
        await store.assign(session("alice", "v1"))
    await store.set_warm("v1", 2.0)
    await store.set_warm("v2", 2.0)
    outcomes = await asyncio.gather(
        *(store.assign(session(f"s{number}", "v1")) for number in range(50)),
        *(store.assign(session("s0", "v2")) for _ in range(50)),
        return_exceptions=True,
    )
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if isinstance(outcome, BaseException))
    rows = (await store.load()).sessions
    assert len(won) == len(rows) == len({row.vm_id for row in rows}) == len({row.identifier for row in rows})
    await store.close()


async def test_how_a_session_ended_is_told_to_the_next_for_a_day(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    for number, created_at in enumerate((100.0, 200.0, 90_000.0)):
        await store.add_vm(vm(f"v{number}"))
        await store.set_warm(f"v{number}", 2.0)
        epoch, previous = await store.assign(session("alice", f"v{number}", created_at))
        await store.end_vms({f"v{number}": (3, "")}, created_at + 50)
        await store.end_vms({f"v{number}": (4, "")}, created_at + 60)  # a repeat changes nothing
        expected = {0: None, 1: EndedRow(1, 3, 150.0), 2: None}[number]
        assert (epoch, previous) == (number + 1, expected)
    assert await store.ended("python", "alice", 0) == EndedRow(3, 3, 90_050.0)
    assert await store.ended("python", "alice", 90_051) is None
    await store.close()


async def test_a_write_that_fails_by_our_fault_takes_nothing_with_it(tmp_path: Path) -> None:
    """Neither half of itself, nor what shares its transaction, nor the store."""
    store = SqliteStore(tmp_path / "s.db")
    await store.add_vm(vm("v1"))
    await store.add_vm(vm("v2"))
    async with asyncio.timeout(30):  # a store without its thread answers nobody
        wrong, right = await asyncio.gather(
            store.end_vms({"v1": (3, ""), "v2": (99, "")}, 2.0),  # there is no such reason
            store.add_vm(vm("v3")),
            return_exceptions=True,
        )
    assert isinstance(wrong, ValueError) and right is None
    assert [row.vm_id for row in (await store.load()).vms] == ["v1", "v2", "v3"]
    await store.end_vms({"v1": (3, "")}, 2.0)
    assert [row.vm_id for row in (await store.load()).vms] == ["v2", "v3"]
    await store.close()


async def test_a_killed_process_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\nfrom pathlib import Path\n"
        "from pool_manager.sqlite_store import SqliteStore\nfrom pool_manager.store import NodeRow\n"
        "async def main():\n"
        "    store = SqliteStore(Path(sys.argv[1]))\n"
        "    for number in range(100):\n"
        "        await store.save_node(NodeRow(f'n{number}', 'a', 'b', 'c'))\n"
        "        print(number, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path / "s.db"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    store = SqliteStore(tmp_path / "s.db")
    assert process.returncode == -9
    assert len((await store.load()).nodes) == len(output.split()) == 100
    await store.close()


async def test_a_file_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreUnusable, match=r"s\.db.*later version"):
        SqliteStore(tmp_path / "s.db")
    assert not [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(tmp_path / "s.db")]
