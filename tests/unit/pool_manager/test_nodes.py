"""What becomes of VMs and pools as nodes come, go, move and lie, on a whole pool-manager."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from sandpool.v1 import pool_pb2 as pb
from sandpool.v1 import session_pb2

from .conftest import WAIT_SECONDS, Control
from .node import Node


async def test_a_reboot_ends_sessions_with_its_reason(control: Control) -> None:
    await control.create(ready_target=1)
    await control.ensure()
    control.node.reboot()
    assert (await control.happened("SESSION_ENDED")).reason == "NODE_REBOOTED"
    assert (await control.happened("NODE_REBOOTED")).node_id == "node-1"
    await control.until(lambda pool: pool.counts.warm == 1)


async def test_a_pool_without_a_node_is_filled_as_soon_as_there_is_one(control: Control) -> None:
    await control.node.stop()
    await control.happened("NODE_UNREACHABLE")
    await control.pools.Create(pb.CreatePoolRequest(name="p", spec=pb.PoolSpec(ready_target=1)))
    assert (await control.happened("POOL_CONDITION_BEGAN", pool="p")).reason == "NO_NODE"
    await control.node.start()
    await control.until(lambda pool: pool.counts.warm == 1 and not pool.conditions)


async def test_a_node_does_not_speak_of_the_vms_of_another(control: Control) -> None:
    await control.create(ready_target=1)
    session = (await control.ensure()).session
    other = Node(f"unix:{control.directory}/other", node_id="node-2")
    await other.start()
    await other.register(control.channel)
    await control.happened("NODE_READY", node_id="node-2")
    other.claim(session.vm_id)
    async with asyncio.timeout(WAIT_SECONDS):
        await other.asked.acquire()
    (asked,) = other.destroys
    assert (asked.vm_id, asked.reason) == (session.vm_id, session_pb2.END_REASON_ORPHANED)
    await other.stop()
    await control.happened("NODE_UNREACHABLE", node_id="node-2")  # what it said before that is heard
    assert await control.session() == session and session.vm_id in control.node.vms


async def test_a_node_that_registers_many_times_at_once_is_watched_once(control: Control) -> None:
    moved = [replace(control.node, tunnel_address=f"127.0.0.1:{port}") for port in range(2, 10)]
    await asyncio.gather(*(node.register(control.channel) for node in moved))
    watches = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == "NodeLink.run"]
    assert len(watches) == 1


async def test_what_a_node_that_is_gone_was_making_is_made_by_another(control: Control) -> None:
    control.node.permits = asyncio.Semaphore(0)
    await control.pools.Create(pb.CreatePoolRequest(name="p", spec=pb.PoolSpec(ready_target=2)))
    for _ in range(2):
        await control.node.begun.acquire()
    other = Node(f"unix:{control.directory}/other", node_id="node-2")
    await other.start()
    await other.register(control.channel)
    await control.happened("NODE_READY", node_id="node-2")
    await control.node.stop()
    await control.until(lambda pool: pool.counts.warm == 2)
    await control.stop()  # the next one finds rows of creations, of a node of which it never hears
    await control.start()
    await control.until(lambda pool: pool.counts.warm == 2)
    await control.update(ready_target=3)
    await control.until(lambda pool: pool.counts.warm == 3)
    assert len(other.vms) == 3 and not control.node.vms
    await other.stop()


async def test_what_is_under_way_on_a_node_that_moves_is_done_again(control: Control) -> None:
    await control.create(ready_target=1)
    (old,) = control.node.vms
    control.node.silent[old] = asyncio.Semaphore(0)
    await control.update(ready_target=0)
    await control.node.asked.acquire()
    control.node.permits = asyncio.Semaphore(0)
    await control.update(ready_target=2)
    for _ in range(3):
        await control.node.begun.acquire()
    control.node.tunnel_address = "127.0.0.1:2"
    await control.node.register(control.channel)
    control.node.silent[old].release()
    control.node.permits = None
    await control.until(lambda pool: pool.counts.warm == 2)
    await control.until(lambda _: len(control.node.vms) == 2 and old not in control.node.vms)
