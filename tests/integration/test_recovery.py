"""What the control plane makes of the end of its processes, its node, its templates and its disk."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from sandpool.v1 import session_pb2
from sandpool.v1.session_pb2 import ListSessionsRequest
from service_kit import errors

from .control_plane import ControlPlane, open_control_plane

ORPHAN = "0" * 26


@pytest_asyncio.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with open_control_plane() as running:
        yield running


async def pending(plane: ControlPlane, pools: int, each: int) -> list[str]:
    """Pools that wait for all of their VMs; their names."""
    plane.node.open.clear()
    names = [f"pool{number}" for number in range(pools)]
    for name in names:
        await plane.make_pool(name, each)
    while len(plane.node.vms) < pools * each:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return names


@pytest.mark.parametrize("finished_by", ["node alone", "node in front of its successor"])
async def test_killed_with_50_creations_under_way(plane: ControlPlane, finished_by: str) -> None:
    names = await pending(plane, 10, 5)
    await plane.kill()
    if finished_by == "node alone":
        plane.node.open.set()
    await plane.start()
    plane.node.open.set()
    for name in names:
        await plane.until_warm(name, 5)
    assert len(plane.node.asked) == 50 and set(plane.node.asked.values()) == {1}  # adopted, not made again
    assert {row[0] for row in plane.rows("SELECT vm_id FROM vms WHERE state = 'WARM'")} == set(plane.node.vms)


async def test_creations_that_never_arrived_are_made_again(plane: ControlPlane) -> None:
    names = await pending(plane, 10, 5)
    await plane.kill()
    lost = sorted(plane.node.vms)[::5]
    for vm_id in lost:
        plane.node.lose(vm_id)
    plane.node.open.set()
    await plane.start()
    for name in names:
        await plane.until_warm(name, 5)
    assert len(plane.node.vms) == 50 and not set(lost) & set(plane.node.vms)
    assert len(plane.rows("SELECT vm_id FROM vms")) == 50


async def test_a_creation_that_arrives_after_its_row_is_gone_is_an_orphan(plane: ControlPlane) -> None:
    await plane.make_pool("pool", 1)
    await plane.until_warm("pool", 1)
    plane.node.appear(ORPHAN)
    while ORPHAN in plane.node.vms:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await plane.counts("pool")).warm == len(plane.node.vms) == 1


async def test_a_reboot_ends_1000_sessions_in_one_transaction_and_each_is_told(plane: ControlPlane) -> None:
    await plane.make_pool("pool", 8)
    bindings = await plane.acquire_all("pool", 1000)
    assert len({binding.vm_id for binding in bindings}) == 1000 and all(binding.created for binding in bindings)
    plane.node.reboot()
    while (await plane.sessions.List(ListSessionsRequest(pool="pool", page_size=1))).sessions:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    reason = session_pb2.END_REASON_NODE_REBOOTED
    ended = "SELECT COUNT(*), COUNT(DISTINCT ended_at), MIN(reason), MAX(reason) FROM ended"
    assert plane.rows(ended) == [(1000, 1, reason, reason)]
    again = await plane.acquire_all("pool", 1000)
    assert {binding.previous.end_reason for binding in again} == {reason}
    assert not {binding.vm_id for binding in again} & {binding.vm_id for binding in bindings}
    await plane.until_warm("pool", 8)
    assert len(plane.node.vms) == 1008


async def test_a_pool_manager_killed_before_it_has_seen_the_reboot_still_tells_of_it(plane: ControlPlane) -> None:
    await plane.make_pool("pool", 1)
    await plane.acquire("pool", "alice")
    await plane.kill()
    plane.node.reboot()
    await plane.start()
    while not (await plane.acquire("pool", "alice")).binding.created:  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # its node has not been heard of yet
    reason = session_pb2.END_REASON_NODE_REBOOTED
    assert plane.rows("SELECT reason FROM ended") == [(reason,)]


async def test_a_template_that_is_gone_is_built_again(plane: ControlPlane) -> None:
    await plane.make_pool("pool", 4)
    await plane.until_warm("pool", 4)
    assert plane.node.builds == 1
    plane.node.template = ""
    await plane.acquire_all("pool", 3)
    await plane.until_warm("pool", 4)
    assert plane.node.builds == 2


async def test_a_full_disk_is_told_and_waited_for() -> None:
    async with open_control_plane(log=Path("/dev/full")) as plane:  # where the log cannot be written either
        await plane.make_pool("pool", 4)
        await plane.until_warm("pool", 4)
        before = (await plane.acquire("pool", "before")).binding
        await plane.until_warm("pool", 4)
        assert plane.process is not None
        limits = resource.prlimit(plane.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(plane.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        for number in range(20):  # more than there are VMs: none is lost by trying
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await plane.acquire("pool", f"refused{number}")
            told = errors.from_rpc_error(caught.value)
            assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE")
        assert (await plane.acquire("pool", "before")).binding.vm_id == before.vm_id
        plane.node.lose(before.vm_id)  # an end that cannot be written yet
        plane.node.cut()
        resource.prlimit(plane.process.pid, resource.RLIMIT_FSIZE, limits)
        while not (again := (await plane.acquire("pool", "before")).binding).created:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the node has not been heard of yet
        assert again.previous.end_reason == session_pb2.END_REASON_VM_LOST
        bindings = [(await plane.acquire("pool", f"after{number}")).binding for number in range(8)]
        assert len({binding.vm_id for binding in [*bindings, before, again]}) == 10
        await plane.until_warm("pool", 4)
        assert {row[0] for row in plane.rows("SELECT vm_id FROM vms")} == set(plane.node.vms)
        assert len(plane.node.vms) == 4 + 9
