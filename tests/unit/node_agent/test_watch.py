"""What a watcher is told, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from node_agent.watch import Changes
from sandpool.node.v1 import node_pb2 as pb
from service_kit import errors


async def test_a_change_that_comes_with_a_heartbeat_leaves_no_gap() -> None:
    """It is told, and no heartbeat before it counts it already: who watches would take that for a loss."""
    changes = Changes(heartbeat_seconds=0)
    told = changes.watch(pb.NodeSnapshot, pb.Heartbeat)
    await anext(told)

    async def following() -> pb.WatchResponse:
        return await anext(told)

    # In one turn of the loop: the time for a heartbeat is over, and before the watcher knows, there is a change.
    waiting = asyncio.create_task(following())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(changes.publish, pb.Vm(vm_id="one"))
    first, second = await waiting, await following()
    assert (first.vm.vm_id, first.sequence) == ("one", 1)
    assert (second.WhichOneof("event"), second.sequence) == ("heartbeat", 1)
    await told.aclose()


@pytest.mark.parametrize("heard", [0, 1])
async def test_who_is_far_behind_begins_again(heard: int) -> None:
    """What did not fit is not passed over in silence, not even if nothing comes after it."""
    changes = Changes(heartbeat_seconds=0.01, max_behind=2)
    told = changes.watch(pb.NodeSnapshot, pb.Heartbeat)
    await anext(told)
    for name in ("one", "two", "lost"):
        changes.publish(pb.Vm(vm_id=name))
    seen = [(await anext(told)).vm.vm_id for _ in range(heard)]
    if heard:
        changes.publish(pb.Vm(vm_id="four"))  # there is room again
    with pytest.raises(errors.ResourceExhausted):
        for _ in range(5):
            seen.append((await anext(told)).vm.vm_id)
    assert (seen, changes.watchers) == (["one", "two"], 0)
