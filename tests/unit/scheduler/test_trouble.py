"""What goes wrong around a session, through a real scheduler and tunnel, on a real guest agent."""

from __future__ import annotations

import asyncio
import json
import os
import struct

import grpc
import pytest

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import file_pb2

from ..guest_agent.conftest import gather
from .conftest import World, failure, ref


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("E", json.dumps({"exit": 0, "cpu": float("nan"), "memory": 1})),
        ("R", json.dumps({"id": 0, "mime": "a", "value": False, "size": 0})),
        ("R", json.dumps({"id": 7, "mime": "\ud800" * 2000, "value": True, "size": 0})),
    ],
)
async def test_code_that_speaks_for_its_worker_does_not_end_its_session(world: World, kind: str, payload: str) -> None:
    await world.add_guest("vm1")
    frame = struct.pack(">BI", ord(kind), len(payload)) + payload.encode()
    forged = world.code(f"import os, sys, time\nos.write(int(sys.argv[2]), {frame!r})\ntime.sleep(0.2)")
    assert (await gather(world.executions.Execute(forged))).ended is not None
    assert (await gather(world.executions.Execute(world.code("print(1)")))).stdout == b"1\n"
    assert not world.fleet.reports


async def test_names_that_are_no_text_do_not_end_their_session(world: World) -> None:
    guest = await world.add_guest("vm1")
    await world.files.MakeDir(file_pb2.MakeDirRequest(session=ref(), path="/".join(["d" * 250] * 15)))
    parent = os.open(guest.data.joinpath(*["d" * 250] * 15), os.O_RDONLY)
    for _ in range(16):
        os.mkdir(b"\xff" * 250, dir_fd=parent)
        child = os.open(b"\xff" * 250, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    os.close(parent)
    request = file_pb2.ListFilesRequest(session=ref(), path="/".join(["d" * 250] * 15), recursive=True)
    assert len((await world.files.List(request)).files) == 1
    await world.files.Remove(file_pb2.RemoveFileRequest(session=ref(), path="d" * 250, recursive=True))


async def test_results_without_end_do_not_end_their_session(world: World) -> None:
    await world.add_guest("vm1")
    source = "for n in range(6_000): display({'a/b': str(n), 'c/d': 'x' * 300}, raw=True)"
    outcome = await gather(world.executions.Execute(world.code(source)))
    assert outcome.results is not None and len(outcome.results) == 4096 and outcome.gaps is not None
    assert [(gap.reason, gap.result_id) for gap in outcome.gaps] == [(pb.GAP_REASON_OUTPUT_LIMIT, 2049)]
    assert not world.fleet.reports


async def test_clients_that_read_nothing_hold_back_nobody(world: World) -> None:
    await world.add_guest("vm1")
    stalled = [aiter(world.executions.Execute(world.shell("yes", execution_id=f"stalled-{n}"))) for n in range(8)]
    for call in stalled:
        await anext(call)
    for n in range(len(stalled)):  # everything on the way is full: the programs write no more
        request, position = pb.GetExecutionRequest(session=ref(), execution_id=f"stalled-{n}"), -1
        while position != (position := (await world.executions.Get(request)).execution.position):
            await gather(world.executions.Execute(world.shell("sleep 0.1")))
    outcome = await gather(world.executions.Execute(world.shell("head -c 5000000 /dev/zero")))
    assert len(outcome.stdout) == 5_000_000 and not outcome.gaps
    for n in range(len(stalled)):
        cancel = pb.CancelRequest(session=ref(), execution_id=f"stalled-{n}")
        assert (await world.executions.Cancel(cancel)).cancelled
    for call in stalled:  # and each has its end, once it reads
        ended = (await gather(call)).ended
        assert ended is not None and ended.killed == pb.KILL_REASON_CANCELLED


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 1e-9, 1e-4])
async def test_a_deadline_in_the_past_runs_nothing_and_harms_nothing(world: World, timeout: float) -> None:
    await world.add_guest("vm1")
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gather(world.executions.Execute(world.shell("touch ran; sleep 60"), timeout=timeout))
        assert failure(caught).code is grpc.StatusCode.DEADLINE_EXCEEDED
    outcome = await gather(world.executions.Execute(world.shell("echo on")))
    assert outcome.stdout == b"on\n" and not world.fleet.reports
    assert len({vm.vm_id for vm in world.fleet.vms if vm.session}) == 1


async def test_a_hundred_clients_of_one_session_get_one_vm(world: World) -> None:
    for name in ("vm1", "vm2"):
        await world.add_guest(name)
    requests = [file_pb2.MakeDirRequest(session=ref(), path=str(number)) for number in range(100)]
    answers = await asyncio.gather(*(world.files.MakeDir(request) for request in requests))
    sessions = [answer.session for answer in answers]
    assert {(one.vm_id, one.epoch) for one in sessions} == {("vm1", 1)}
    assert [one.created for one in sessions].count(True) == 1
    assert len([vm for vm in world.fleet.vms if vm.session]) == 1
