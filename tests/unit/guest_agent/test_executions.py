"""Executions on a real guest agent: state, streaming, ends of every kind, attaching, limits."""

import asyncio
import signal

import grpc
import pytest
from google.protobuf import duration_pb2

from guest_agent.activity import Activity
from guest_agent.execution import ENDED_BYTES, LEAST_BUFFER_BYTES, RUNNING_BYTES, Executions
from guest_agent.output import ITEM_BYTES, Gap, Item, OutputLog
from sandpool.guest.v1 import guest_pb2
from sandpool.v1 import execution_pb2 as pb

from .conftest import Agent, gather


def seconds(value: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(int(value * 1000))
    return duration


async def test_state_is_kept_and_the_value_is_a_result(agent: Agent) -> None:
    await agent.code("x = 20")
    outcome = await agent.code("print('hello')\nx * 2 + 2")
    assert outcome.stdout == b"hello\n"
    assert outcome.results == {(1, "text/plain"): b"42"}
    assert outcome.ended is not None and outcome.ended.exit_code == 0


async def test_output_arrives_while_the_code_runs(agent: Agent) -> None:
    source = "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('second')"
    seen = []
    async for event in agent.executions.Execute(pb.ExecuteRequest(code=pb.Code(source=source))):
        if event.HasField("output"):
            seen.append(event.output.data)
            (agent.data / "go").touch()  # the program goes on only because its first line got here
    assert b"".join(seen) == b"first\nsecond\n"


async def test_an_exception_is_a_result_with_its_traceback(agent: Agent) -> None:
    outcome = await agent.code("1 / 0")
    assert outcome.error is not None and outcome.ended is not None
    assert (outcome.error.name, outcome.error.value) == ("ZeroDivisionError", "division by zero")
    assert "1 / 0" in outcome.error.traceback and "\x1b" not in outcome.error.traceback
    assert outcome.ended.exit_code == 1


async def test_exit_ends_the_cell_and_keeps_the_state(agent: Agent) -> None:
    outcome = await agent.code("x = 1\nexit(7)\nx = 2")
    assert outcome.ended is not None and outcome.ended.exit_code == 7 and not outcome.ended.state_lost
    assert (await agent.code("print(x)")).stdout == b"1\n"


@pytest.mark.parametrize(
    ("source", "outcome", "value"),
    [
        ("import os; print('bye', flush=True); os._exit(3)", "exit_code", 3),
        ("import os, signal; print('bye', flush=True); os.kill(os.getpid(), 11)", "signal", signal.SIGSEGV),
    ],
)
async def test_a_dead_worker_is_told_and_replaced(agent: Agent, source: str, outcome: str, value: int) -> None:
    got = await agent.code(source)
    assert got.ended is not None and got.ended.state_lost and got.stdout == b"bye\n"
    assert (got.ended.WhichOneof("outcome"), getattr(got.ended, outcome)) == (outcome, value)
    assert (await agent.code("print(1)")).stdout == b"1\n"


async def test_a_timeout_kills_a_command_and_its_children(agent: Agent) -> None:
    outcome = await agent.shell("sleep 60 & sleep 60", timeout=seconds(0.3))
    assert outcome.ended is not None and outcome.ended.killed == pb.KILL_REASON_TIMEOUT


async def test_an_endless_loop_is_interrupted_and_keeps_the_state(agent: Agent) -> None:
    await agent.code("x = 5")
    outcome = await agent.code("while True: pass", timeout=seconds(0.3))
    assert outcome.ended is not None and outcome.ended.killed == pb.KILL_REASON_TIMEOUT
    assert (await agent.code("print(x)")).stdout == b"5\n"


async def test_bytes_pass_as_they_are(agent: Agent) -> None:
    outcome = await agent.shell(r"printf '\377\000\376'; printf err >&2; exit 4")
    assert (outcome.stdout, outcome.stderr) == (b"\xff\x00\xfe", b"err")
    assert outcome.ended is not None and outcome.ended.exit_code == 4


async def test_a_repeated_id_attaches_and_another_request_is_refused(agent: Agent) -> None:
    request = pb.ExecuteRequest(execution_id="a", command=pb.Command(shell="echo $RANDOM"))
    first, second = await agent.execute(request), await agent.execute(request)
    assert second.attached and first.stdout == second.stdout
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.shell("echo other", execution_id="a")
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_reader_that_went_away_attaches_where_it_was(agent: Agent) -> None:
    request = pb.ExecuteRequest(
        execution_id="a", command=pb.Command(shell="echo one; while [ ! -e go ]; do sleep 0.01; done; echo two")
    )
    call = agent.executions.Execute(request)
    position = 0
    async for event in call:
        position = event.next_position
        if event.HasField("output"):
            break
    call.cancel()
    (agent.data / "go").touch()
    rest = await gather(agent.executions.Attach(pb.AttachRequest(execution_id="a", position=position)))
    assert rest.stdout == b"two\n"


async def test_cancel_ends_every_process_of_the_group(agent: Agent) -> None:
    call = agent.executions.Execute(
        pb.ExecuteRequest(
            execution_id="a", command=pb.Command(shell="trap '' TERM; sleep 60 & echo $!; wait; sleep 60")
        )
    )
    outcome = None
    async for event in call:
        if event.HasField("output"):
            assert (await agent.executions.Cancel(pb.CancelRequest(execution_id="a"))).cancelled
        elif event.HasField("ended"):
            outcome = event.ended
    assert outcome is not None and outcome.killed == pb.KILL_REASON_CANCELLED


async def test_output_beyond_the_limit_is_discarded_with_one_gap(agent: Agent) -> None:
    outcome = await agent.shell("head -c 1000000 /dev/zero; echo end >&2", output_limit_bytes=1000)
    assert len(outcome.stdout) == 1000 and outcome.gaps is not None
    assert [(gap.reason, gap.begin) for gap in outcome.gaps] == [(pb.GAP_REASON_OUTPUT_LIMIT, 1000)]
    assert outcome.ended is not None and outcome.ended.exit_code == 0


async def test_twenty_megabytes_arrive_whole(agent: Agent) -> None:
    outcome = await agent.shell("head -c 20000000 /dev/zero")
    assert len(outcome.stdout) == 20_000_000 and not outcome.gaps


async def test_a_twenty_megabyte_result_is_only_more_chunks(agent: Agent) -> None:
    source = "from IPython.display import display\ndisplay({'text/x-big': 'x' * 20_000_000}, raw=True)"
    outcome = await agent.code(source)
    assert outcome.results is not None and not outcome.gaps
    assert len(outcome.results[1, "text/x-big"]) == 20_000_000


async def test_a_sealed_agent_refuses_and_an_unsealed_one_serves(agent: Agent) -> None:
    prepare = guest_pb2.PrepareRequest(vm_id="v", entropy=b"e" * 256)
    answer = await agent.guest.Prepare(prepare)
    assert answer == await agent.guest.Prepare(prepare) and len(answer.worker_samples["python"]) == 32
    assert not (await agent.guest.Seal(guest_pb2.SealRequest(only_if_idle_for=seconds(60)))).sealed
    assert (await agent.guest.Seal(guest_pb2.SealRequest())).sealed
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.code("1")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(caught.value.trailing_metadata() or ())["sandpool-reason"] == "SEALED"
    await agent.guest.Unseal(guest_pb2.UnsealRequest())
    assert (await agent.code("print(1)")).stdout == b"1\n"


def test_a_slow_reader_gets_a_gap_and_a_fast_one_everything() -> None:
    log = OutputLog(capacity=2 * (5 + ITEM_BYTES), output_limit=1000)
    fast, slow = log.attach(0), log.attach(0)
    got = []
    for _ in range(4):
        assert log.room()
        log.write(1, b"12345")
        got += [item.data for item in log.next(fast) if isinstance(item, Item)]
    assert b"".join(got) == b"12345" * 4
    assert [(item.begin, item.end) if isinstance(item, Gap) else item.data for item in log.next(slow)] == [
        (0, 10),
        b"12345",
        b"12345",
    ]


def test_the_producer_is_held_back_by_the_fastest_reader_only_while_there_is_one() -> None:
    log = OutputLog(capacity=10, output_limit=1000)
    reader = log.attach(0)
    log.write(1, b"1234567890")
    assert not log.room()
    log.detach(reader)
    assert log.room()


def test_small_writes_that_nobody_has_had_are_one_item() -> None:
    log = OutputLog(capacity=1 << 20, output_limit=1000)
    early = log.attach(0)
    log.write(1, b"a")
    assert [item.data for item in log.next(early) if isinstance(item, Item)] == [b"a"]
    for piece in (b"b", b"c"):
        log.write(1, piece)
    log.write(2, b"d")
    late, middle = log.attach(0), log.attach(2)
    assert [item.data for item in log.next(early) if isinstance(item, Item)] == [b"bc", b"d"]
    assert [item.data for item in log.next(late) if isinstance(item, Item)] == [b"a", b"bc", b"d"]
    assert [(item.offset, item.data) for item in log.next(middle) if isinstance(item, Item)] == [(2, b"c"), (0, b"d")]


def test_executions_share_what_the_agent_may_buffer() -> None:
    executions = Executions(Activity(0.0))
    opened = [executions.open(pb.ExecuteRequest(execution_id=str(number)))[0] for number in range(20)]
    assert sum(execution.output.capacity for execution in opened) <= RUNNING_BYTES + 20 * LEAST_BUFFER_BYTES
    for execution in opened:
        execution.output.write(1, bytes(1 << 20))
        execution.finish(pb.ExecutionEnded())
    executions.open(pb.ExecuteRequest(execution_id="last"))
    kept = list(executions.by_id.values())
    assert sum(execution.output.size_bytes for execution in kept) <= ENDED_BYTES
    assert kept[-2] is opened[-1] and opened[0] not in kept


async def test_a_reader_that_attaches_at_the_end_frees_a_program_that_another_holds_back() -> None:
    execution, _ = Executions(Activity(0.0)).open(pb.ExecuteRequest())
    execution.start()
    stalled = execution.events(0, attached=False)
    await anext(stalled)
    while execution.has_room():
        execution.output.write(1, bytes(1 << 18))
    resumed = asyncio.Event()
    execution.resume_reading = resumed.set
    second = execution.events(execution.output.position, attached=True)
    await anext(second)
    waiting = asyncio.ensure_future(anext(second))
    async with asyncio.timeout(10):
        await resumed.wait()
    assert execution.has_room()
    execution.finish(pb.ExecutionEnded())
    assert (await waiting).HasField("ended")
