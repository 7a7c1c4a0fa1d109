"""How a guest becomes a VM of its own, and does so again when it was frozen in use: on a real guest agent."""

import asyncio
import os

import grpc
import pytest

from guest_agent.activity import Activity
from guest_agent.execution import Executions
from sandpool.guest.v1 import guest_pb2
from sandpool.v1 import execution_pb2 as pb

from .conftest import Agent, gather

# What random.random() says first after seed(1).
AFTER_SEED_1 = b"0.13436424411240122\n"
WAITS = """
import os, random, signal, time
random.seed(1)
{}
print("on", flush=True)
while not os.path.exists("go"): time.sleep(0.01)
print(random.random())
"""
BIG = "random.seed(1)\ndisplay({'text/x-big': 'x' * 40_000_000}, raw=True)\nprint(random.random())"


def request(vm_id: str, was: str = "", entropy: bytes = b"") -> guest_pb2.PrepareRequest:
    return guest_pb2.PrepareRequest(vm_id=vm_id, resumes_vm_id=was, entropy=entropy or os.urandom(256))


async def assert_refused(agent: Agent, wrong: guest_pb2.PrepareRequest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.guest.Prepare(wrong)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(caught.value.trailing_metadata() or ())["sandpool-reason"] == "PREPARED"


async def test_a_clone_is_prepared_once_and_as_one_vm(agent: Agent) -> None:
    await assert_refused(agent, request("v", was="w"))
    first = await agent.guest.Prepare(request("v"))
    assert await agent.guest.Prepare(request("v")) == first
    await assert_refused(agent, request("w"))
    await assert_refused(agent, request("w", was="x"))
    await assert_refused(agent, request("v", was="x"))
    assert await agent.guest.Prepare(request("v")) == first


async def test_a_vm_that_resumes_is_made_unique_each_time_and_keeps_its_state(agent: Agent) -> None:
    prepares = [request("v"), request("v", "v"), request("v", "v"), request("fork", "v"), request("fork", "fork")]
    answers = []
    for number, prepare in enumerate(prepares):
        answers.append(await agent.guest.Prepare(prepare))
        assert await agent.guest.Prepare(prepare) == answers[-1]
        assert (await agent.code(f"seen = ([] if {number} == 0 else seen) + [{number}]; print(seen)")).error is None
    assert len({answer.random_sample for answer in answers}) == len(prepares)
    assert len({answer.worker_samples["python"] for answer in answers}) == len(prepares)
    assert (await agent.code("print(seen)")).stdout == b"[0, 1, 2, 3, 4]\n"
    described = await agent.guest.Describe(guest_pb2.DescribeRequest())
    assert (described.vm_id, described.protocol_version) == ("fork", 2)
    await assert_refused(agent, request("other", was="v"))


async def test_a_fork_answers_a_repeat_with_other_entropy_the_same(agent: Agent) -> None:
    await agent.guest.Prepare(request("v"))
    first = await agent.guest.Prepare(request("fork", was="v"))
    assert await agent.guest.Prepare(request("fork", was="v")) == first


async def test_generators_of_libraries_are_reseeded_and_those_of_user_code_kept(agent: Agent) -> None:
    await agent.guest.Prepare(request("v"))
    await agent.code("import random, uuid\nmine = random.Random(1)\nrandom.seed(1)")
    await agent.guest.Prepare(request("v", was="v"))
    outcome = await agent.code("print(random.random(), mine.random(), uuid.uuid1(node=1).node)")
    shared, mine, node = outcome.stdout.split()
    assert shared + b"\n" != AFTER_SEED_1 and mine + b"\n" == AFTER_SEED_1 and node == b"1"


LIBRARY = """
import sys, types
library = sys.modules["sympy.core.random"] = types.ModuleType("sympy.core.random")
def seed(value): raise {}
library.seed = seed
"""


@pytest.mark.parametrize("error", ["AttributeError", "ValueError"])  # half imported; another kind of generator
async def test_a_generator_that_is_user_codes_own_is_left_alone(agent: Agent, error: str) -> None:
    await agent.guest.Prepare(request("v"))
    await agent.code(LIBRARY.format(error))
    assert len((await agent.guest.Prepare(request("v", was="v"))).worker_samples["python"]) == 32


async def test_who_cannot_be_reseeded_does_not_become_a_vm(agent: Agent) -> None:
    await agent.guest.Prepare(request("v"))
    await agent.code(LIBRARY.format("RuntimeError"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.guest.Prepare(request("fork", was="v"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert dict(caught.value.trailing_metadata() or ())["sandpool-reason"] == "PREPARE_FAILED"
    assert (await agent.guest.Describe(guest_pb2.DescribeRequest())).vm_id == "v"


async def test_a_cell_that_runs_is_reseeded_and_goes_on(agent: Agent) -> None:
    await agent.guest.Prepare(request("v"))
    cell = agent.executions.Execute(pb.ExecuteRequest(code=pb.Code(source=WAITS.format("")), execution_id="cell"))
    await until_on(cell)
    one, other = [await agent.guest.Prepare(request("v", was="v"), timeout=60) for _ in range(2)]
    assert one.worker_samples != other.worker_samples
    (agent.data / "go").touch()
    outcome = await gather(agent.executions.Attach(pb.AttachRequest(execution_id="cell")))
    assert outcome.error is None and outcome.stdout.startswith(b"on\n0.")
    assert outcome.stdout != b"on\n" + AFTER_SEED_1


async def test_a_cell_that_hears_no_signal_is_waited_for(agent: Agent) -> None:
    await agent.guest.Prepare(request("v"))
    deaf = WAITS.format("signal.signal(signal.SIGURG, signal.SIG_IGN)")
    cell = agent.executions.Execute(pb.ExecuteRequest(code=pb.Code(source=deaf), execution_id="cell"))
    await until_on(cell)
    resuming = asyncio.ensure_future(agent.guest.Prepare(request("v", was="v"), timeout=60))
    await agent.guest.Describe(guest_pb2.DescribeRequest())
    (agent.data / "go").touch()
    outcome = await gather(agent.executions.Attach(pb.AttachRequest(execution_id="cell")))
    assert outcome.stdout == b"on\n" + AFTER_SEED_1
    assert len((await resuming).worker_samples["python"]) == 32
    outcome = await agent.code("print(random.random())")
    assert outcome.error is None and outcome.ended is not None and not outcome.ended.state_lost


async def test_a_cell_that_sends_a_result_is_reseeded_after_it(agent: Agent) -> None:
    await agent.guest.Prepare(request("v"))
    await agent.code("import random")
    stream = agent.executions.Execute(pb.ExecuteRequest(code=pb.Code(source=BIG), execution_id="big"))
    async for event in stream:  # the rest waits for whoever reads
        if event.HasField("result"):
            break
    resuming = asyncio.ensure_future(agent.guest.Prepare(request("v", was="v"), timeout=60))
    size, said = len(event.result.data), b""
    async for event in stream:
        size, said = size + len(event.result.data), said + event.output.data
    assert size == 40_000_000 and said.startswith(b"0.") and said != AFTER_SEED_1
    assert len((await resuming).worker_samples["python"]) == 32


async def test_a_worker_that_answers_unasked_is_replaced(agent: Agent) -> None:
    await agent.guest.Prepare(request("v"))
    outcome = await agent.code("import os, sys; os.write(int(sys.argv[2]), b'S' + bytes(4))")
    assert outcome.ended is not None and outcome.ended.state_lost
    assert (await agent.code("print(1)")).stdout == b"1\n"


async def test_what_nobody_reads_gets_its_whole_time_again_after_a_freeze() -> None:
    executions = Executions(Activity(0.0))
    execution, _ = executions.open(pb.ExecuteRequest(execution_id="e"))
    execution.watch_loneliness()
    before = execution._lonely
    executions.thaw()
    after = execution._lonely
    assert before is not None and after is not None
    assert before.cancelled() and not after.cancelled() and after.when() > before.when()
    after.cancel()


async def until_on(stream: grpc.aio.UnaryStreamCall[pb.ExecuteRequest, pb.ExecutionEvent]) -> None:
    async for event in stream:
        if event.HasField("output"):
            return
    raise AssertionError("the stream has ended")
