"""Commands that flood, linger and crowd, and readers that stall, on a real guest agent."""

from __future__ import annotations

import asyncio

import pytest

from guest_agent.activity import Activity
from guest_agent.execution import KEPT_ENDED, ExecutionForgotten, Executions
from guest_agent.execution_service import MAX_COMMANDS
from sandpool.v1 import execution_pb2 as pb

from .conftest import Agent, Outcome, gather
from .files import refused
from .test_executions import seconds
from .test_hostile_code import resident

MEGABYTE = 1 << 20


async def ended(agent: Agent, execution_id: str) -> pb.ExecutionEnded:
    """Of an execution whose stream nobody reads: a second reader would free it."""
    while True:
        request = pb.GetExecutionRequest(execution_id=execution_id)
        execution = (await agent.executions.Get(request)).execution
        if execution.state == pb.EXECUTION_STATE_ENDED:
            return execution.ended


async def test_a_line_of_fifty_megabytes_passes_in_little_memory(agent: Agent) -> None:
    await agent.shell("head -c 9000000 /dev/zero")  # the buffer is as large as it gets
    before, seen, last = resident(agent), 0, None
    request = pb.ExecuteRequest(command=pb.Command(shell="head -c 50000000 /dev/zero | tr '\\0' x"))
    async for event in agent.executions.Execute(request):
        assert not event.HasField("gap")
        seen += len(event.output.data)
        last = event
    assert seen == 50_000_000 and last is not None and last.ended.exit_code == 0
    assert resident(agent) - before < 32 * MEGABYTE


async def test_beyond_its_limit_a_program_is_held_back_by_nobody(agent: Agent) -> None:
    request = pb.ExecuteRequest(
        execution_id="a",
        command=pb.Command(shell="head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2; echo $? > done"),
        output_limit_bytes=4 * MEGABYTE,
    )
    call = aiter(agent.executions.Execute(request))
    await anext(call)  # and no more: the stream's windows hold less than the limit
    assert (await ended(agent, "a")).exit_code == 0 and (agent.data / "done").read_text() == "0\n"
    rest = await gather(call)
    assert len(rest.stdout) == 4 * MEGABYTE and rest.stderr == b"" and rest.gaps is not None
    assert [(gap.reason, gap.begin) for gap in rest.gaps] == [(pb.GAP_REASON_OUTPUT_LIMIT, 4 * MEGABYTE)]


async def produced(agent: Agent, execution_id: str) -> int:
    return (await agent.executions.Get(pb.GetExecutionRequest(execution_id=execution_id))).execution.position


async def test_a_timeout_holds_for_what_a_program_has_left_behind(agent: Agent) -> None:
    request = pb.ExecuteRequest(execution_id="a", command=pb.Command(shell="yes & exit 3"), timeout=seconds(1))
    call = agent.executions.Execute(request)
    await call.read()  # and no more: `yes` fills the buffer, and its end is not waited for for ever
    assert (await ended(agent, "a")).exit_code == 3
    call.cancel()


async def test_a_stalled_reader_holds_back_nobody_else(agent: Agent) -> None:
    stalled = []
    for number in range(8):
        request = pb.ExecuteRequest(execution_id=str(number), command=pb.Command(shell="yes"))
        stalled.append(agent.executions.Execute(request))
        await stalled[-1].read()
    for call in stalled:  # of every stream all is under way that may be
        position = -1
        while position != (position := await produced(agent, str(stalled.index(call)))):
            await agent.shell("sleep 0.05")
    outcome = await agent.shell("head -c 5000000 /dev/zero")
    assert len(outcome.stdout) == 5_000_000
    assert (await agent.code("print(1)")).stdout == b"1\n"
    for number, call in enumerate(stalled):
        assert (await agent.executions.Cancel(pb.CancelRequest(execution_id=str(number)))).cancelled
        call.cancel()


async def test_more_commands_than_may_run_are_refused(agent: Agent) -> None:
    calls = []
    for number in range(MAX_COMMANDS):
        request = pb.ExecuteRequest(
            execution_id=str(number), command=pb.Command(shell="until [ -e go ]; do sleep 0.1; done")
        )
        calls.append(aiter(agent.executions.Execute(request)))
        await anext(calls[-1])
    with refused() as refusal:
        await agent.shell("true")
    assert refusal.said == ("RESOURCE_EXHAUSTED", "TOO_MANY_COMMANDS", "")
    assert (await agent.code("print(1)")).stdout == b"1\n"
    (agent.data / "go").touch()
    outcomes: list[Outcome] = await asyncio.gather(*(gather(call) for call in calls))
    assert all(outcome.ended is not None and outcome.ended.exit_code == 0 for outcome in outcomes)
    assert (await agent.shell("echo again")).stdout == b"again\n"


async def test_what_has_ended_takes_little_memory(agent: Agent) -> None:
    async def several(count: int) -> None:
        for _ in range(count):
            await agent.code("print('x' * 500_000)\n" + "#" * 900_000)
            await agent.shell("cat", stdin=bytes(500_000))

    await several(20)
    before = resident(agent)
    await several(30)  # their text and output would be 72 MB
    assert resident(agent) - before < 24 * MEGABYTE
    for _ in range(KEPT_ENDED):
        await agent.code("")
    listed = await agent.executions.List(pb.ListExecutionsRequest(page_size=1000))
    assert len(listed.executions) <= KEPT_ENDED + 1 and not listed.next_page_token


async def test_pages_go_on_where_they_were_though_executions_come_and_go(agent: Agent) -> None:
    for number in range(6):
        await agent.shell("true", execution_id=f"{number}")
    first = await agent.executions.List(pb.ListExecutionsRequest(page_size=2))
    assert [one.execution_id for one in first.executions] == ["5", "4"]
    for number in range(KEPT_ENDED - 1):
        await agent.code("", execution_id=f"later{number}")
    rest = await agent.executions.List(pb.ListExecutionsRequest(page_token=first.next_page_token))
    assert "later0" not in [one.execution_id for one in rest.executions]
    with refused() as refusal:
        await agent.executions.List(pb.ListExecutionsRequest(page_token="?"))
    assert refusal.said == ("INVALID_ARGUMENT", "INVALID_FIELD", "page_token")


def test_ten_thousand_executions_are_kept_only_while_they_are_few() -> None:
    executions = Executions(Activity(0.0))
    for number in range(10_000):
        execution, new = executions.open(pb.ExecuteRequest(execution_id=str(number)))
        assert new
        execution.output.write(1, bytes(1000))
        execution.finish(pb.ExecutionEnded())
    assert len(executions.by_id) <= KEPT_ENDED + 1 and "9999" in executions.by_id


def test_what_is_kept_no_longer_does_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guest_agent.execution.REMEMBERED_IDS", 100)
    executions = Executions(Activity(0.0))
    numbers = range(KEPT_ENDED + 200)
    for number in numbers:
        executions.open(pb.ExecuteRequest(execution_id=str(number)))[0].finish(pb.ExecutionEnded())
    gone = [number for number in numbers if str(number) not in executions.by_id]
    assert len(gone) > 190
    for number in gone[-100:]:
        with pytest.raises(ExecutionForgotten):
            executions.open(pb.ExecuteRequest(execution_id=str(number)))
    assert len(executions._forgotten) == len(executions._forgotten_in_order) == 100


async def test_a_repetition_of_what_is_kept_no_longer_is_refused(agent: Agent) -> None:
    await agent.shell("echo >> ran", execution_id="a")
    for _ in range(KEPT_ENDED + 1):
        await agent.code("")
    with refused() as refusal:
        await agent.shell("echo >> ran", execution_id="a")
    assert refusal.said == ("FAILED_PRECONDITION", "EXECUTION_ENDED", "")
    assert (agent.data / "ran").read_text() == "\n"
