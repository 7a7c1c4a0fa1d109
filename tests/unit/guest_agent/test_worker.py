"""What Python code can do to its worker, on a real guest agent: it ends, or it lives on, and either is told."""

import asyncio
import os
import select

import grpc
import pytest

from guest_agent.python_language import QUEUE_LENGTH
from sandpool.v1 import execution_pb2 as pb

from .conftest import Agent, Outcome, gather
from .files import refused
from .test_executions import seconds


def await_death(pid: int) -> None:
    """Of any process, reaped or not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(descriptor) as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(60_000)


def exit_code(outcome: Outcome) -> int:
    """Of a cell that was not killed."""
    assert outcome.ended is not None and outcome.ended.WhichOneof("outcome") == "exit_code"
    return outcome.ended.exit_code


async def test_input_reads_what_was_given_and_then_ends(agent: Agent) -> None:
    outcome = await agent.code("print(input() + input())", stdin="ä\nb\n".encode())
    assert outcome.stdout == "äb\n".encode()
    assert (await agent.code("print(input('?'))")).error is not None
    ended = (await agent.code("input()")).error
    assert ended is not None and (ended.name, ended.value) == ("EOFError", "EOF when reading a line")


async def test_what_a_thread_prints_after_its_cell_goes_to_the_cell_that_runs_then(agent: Agent) -> None:
    source = """
import os, threading, time
def late():
    while not os.path.exists('go'): time.sleep(0.01)
    print('late', flush=True)
    display({'text/x-late': 'late'}, raw=True)
    open('done', 'w').close()
thread = threading.Thread(target=late); thread.start()
"""
    assert (await agent.code(source)).stdout == b""
    (agent.data / "go").touch()
    assert (await agent.shell("while [ ! -e done ]; do sleep 0.01; done")).ended is not None
    outcome = await agent.code("thread.join(); print('next')")
    assert outcome.stdout == b"next\n" and outcome.results == {}


@pytest.mark.parametrize(
    ("source", "code", "stderr"),
    [
        ("exit()", 0, b""),
        ("exit(0)", 0, b""),
        ("quit(300)", 300, b""),
        ("import sys; sys.exit('sorry')", 1, b"sorry\n"),
        ("raise SystemExit(None)", 0, b""),
    ],
)
async def test_exit_ends_the_cell_with_its_code(agent: Agent, source: str, code: int, stderr: bytes) -> None:
    outcome = await agent.code("x = 1\n" + source)
    assert exit_code(outcome) == code and outcome.stderr == stderr and outcome.error is None
    assert (await agent.code("print(x)")).stdout == b"1\n"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def f(): return f()\nf()", "RecursionError"),
        ("raise ValueError('\\ud800')", "ValueError"),
        ("class E(Exception):\n  def __str__(self): raise KeyError\nraise E", "E"),
        ("raise BaseException('base')", "BaseException"),
        ("x = (", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class R:\n  def __repr__(self): raise ValueError\nR()", ""),
    ],
)
async def test_an_error_of_any_kind_leaves_the_worker_alive(agent: Agent, source: str, error: str) -> None:
    await agent.code("kept = 1")
    outcome = await agent.code(source)
    assert error in (outcome.error.name if outcome.error else "")
    assert outcome.ended is not None and not outcome.ended.state_lost
    assert (await agent.code("print(kept)")).stdout == b"1\n"


async def test_a_worker_whose_directory_is_gone_goes_home(agent: Agent) -> None:
    await agent.code("import os; os.mkdir('d'); os.chdir('d'); os.rmdir('../d')")
    outcome = await agent.code("import os; print(os.getcwd()); open('a', 'w').close()")
    assert outcome.stdout.decode().strip() == str(agent.data) and (agent.data / "a").exists()


async def test_the_directory_and_the_environment_of_a_cell_are_its_own(agent: Agent) -> None:
    (agent.data / "d").mkdir()
    source = "import os; print(os.getcwd(), os.environ.get('A'))"
    assert (await agent.code(source, cwd="d", env={"A": "1"})).stdout == f"{agent.data}/d 1\n".encode()
    assert (await agent.code(source)).stdout == f"{agent.data} None\n".encode()
    missing = await agent.code(source, cwd="missing")
    assert missing.error is not None and missing.error.name == "FileNotFoundError" and missing.stdout == b""


async def test_a_cell_that_closes_its_streams_is_the_only_one_without(agent: Agent) -> None:
    await agent.code("import sys; sys.stdout.close(); sys.stderr.close()")
    outcome = await agent.code("import sys; print('out'); print('err', file=sys.stderr)")
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")


async def test_a_fork_does_not_make_a_second_worker(agent: Agent) -> None:
    outcome = await agent.code("import os\nx = 1\nif os.fork() == 0: x = 2\nelse: os.wait()\nprint(x)")
    assert sorted(outcome.stdout.split()) == [b"1", b"2"]
    assert (await agent.code("print(x)")).stdout == b"1\n"


@pytest.mark.parametrize(
    ("source", "timeout"),
    [
        ("import os, time\nos.closerange(3, 200)\ntime.sleep(60)", 60.0),
        ("import os\nfor fd in range(3, 200):\n  try: os.write(fd, b'nonsense' * 100)\n  except OSError: pass", 60.0),
        ("import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)", 0.2),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", 0.2),
        ("import os, time\nif os.fork() == 0: time.sleep(1000)\nos._exit(1)", 60.0),
        ("import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(5)\nos._exit(1)", 60.0),
    ],
)
async def test_a_worker_that_cannot_go_on_is_replaced(agent: Agent, source: str, timeout: float) -> None:
    outcome = await agent.code(source, timeout=seconds(timeout))
    assert outcome.ended is not None and outcome.ended.state_lost
    assert (await agent.code("print(1)")).stdout == b"1\n"


async def test_a_worker_that_died_between_cells_is_told_and_the_cell_does_not_run(agent: Agent) -> None:
    got = await agent.code("import os; print(os.getpid())")
    os.kill(int(got.stdout), 9)
    await_death(int(got.stdout))
    outcome = await agent.code("open('ran', 'w').close()")
    assert outcome.ended is not None and outcome.ended.state_lost and outcome.ended.signal == 9
    assert b"its variables are gone" in outcome.stderr and not (agent.data / "ran").exists()
    assert (await agent.code("print(1)")).stdout == b"1\n"


async def test_a_cell_that_shows_much_while_nobody_reads_ends_by_its_timeout(agent: Agent) -> None:
    source = "while True: display({'text/x-big': 'x' * 1_000_000}, raw=True)"
    call = agent.executions.Execute(
        pb.ExecuteRequest(execution_id="a", code=pb.Code(source=source), timeout=seconds(0.5))
    )
    await call.read()  # and no more, but the stream stays
    outcome = await agent.code("print('next')")
    assert outcome.stdout == b"next\n"
    call.cancel()
    ended = (await agent.executions.Get(pb.GetExecutionRequest(execution_id="a"))).execution.ended
    assert ended.killed == pb.KILL_REASON_TIMEOUT and not ended.state_lost


async def test_a_command_whose_reader_stalls_ends_by_its_timeout(agent: Agent) -> None:
    request = pb.ExecuteRequest(execution_id="a", command=pb.Command(shell="yes"), timeout=seconds(0.5))
    call = agent.executions.Execute(request)
    await call.read()
    request_state, execution = pb.GetExecutionRequest(execution_id="a"), pb.Execution()
    while execution.state != pb.EXECUTION_STATE_ENDED:  # a second reader would free the program
        execution = (await agent.executions.Get(request_state)).execution
    call.cancel()
    assert execution.ended.killed == pb.KILL_REASON_TIMEOUT


async def test_cells_beyond_the_queue_are_refused_and_cancelled_ones_never_run(agent: Agent) -> None:
    gate = agent.executions.Execute(
        pb.ExecuteRequest(code=pb.Code(source="import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"))
    )
    await gate.read()
    for turn in range(2):  # those that were cancelled leave their places to others
        ids = [f"{turn}-{number}" for number in range(QUEUE_LENGTH)]
        for execution_id in ids:
            code = pb.Code(source="open('ran', 'w')")
            await agent.executions.Execute(pb.ExecuteRequest(execution_id=execution_id, code=code)).read()
        with refused() as refusal:
            await agent.code("print(0)")
        assert refusal.said == ("RESOURCE_EXHAUSTED", "LANGUAGE_QUEUE_FULL", "")
        for execution_id in ids:
            await agent.executions.Cancel(pb.CancelRequest(execution_id=execution_id))
    (agent.data / "go").touch()
    assert (await agent.code("print(1)")).stdout == b"1\n" and not (agent.data / "ran").exists()


async def test_a_command_leaves_no_process_of_its_group_behind(agent: Agent) -> None:
    outcome = await agent.shell("sleep 1000 >/dev/null 2>&1 & echo $!; exit 3")
    assert exit_code(outcome) == 3
    await_death(int(outcome.stdout))


async def test_cpu_and_memory_are_of_the_command_alone(agent: Agent) -> None:
    hungry = await agent.shell("python3 -c 'x = b\"a\" * 60_000_000; sum(range(5_000_000))'")
    modest = await agent.shell("true")
    assert hungry.ended is not None and modest.ended is not None
    assert hungry.ended.peak_memory_bytes > 60_000_000 > modest.ended.peak_memory_bytes
    assert hungry.ended.cpu_seconds > modest.ended.cpu_seconds


async def test_input_waits_for_a_program_that_does_not_read(agent: Agent) -> None:
    request = pb.ExecuteRequest(execution_id="a", command=pb.Command(shell="read; cat | wc -c"), keep_stdin_open=True)
    call = agent.executions.Execute(request)
    await call.read()
    for data, end in ((b"\n", False), (bytes(1 << 20), False), (bytes(1 << 20), True)):
        await agent.executions.Input(pb.InputRequest(execution_id="a", data=data, end=end))
    output = b""
    while isinstance(event := await call.read(), pb.ExecutionEvent):
        output += event.output.data
    assert output == b"2097152\n"


async def test_input_that_is_given_up_does_not_pile_up(agent: Agent) -> None:
    shell = "until [ -e go ]; do sleep 0.01; done; wc -c"
    request = pb.ExecuteRequest(execution_id="a", command=pb.Command(shell=shell), keep_stdin_open=True)
    call = aiter(agent.executions.Execute(request))
    await anext(call)
    more = pb.InputRequest(execution_id="a", data=bytes(1 << 20))
    first = asyncio.ensure_future(agent.executions.Input(more))
    for outcome in await asyncio.gather(
        *(agent.executions.Input(more, timeout=0.5) for _ in range(10)), return_exceptions=True
    ):
        assert isinstance(outcome, grpc.aio.AioRpcError) and outcome.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (agent.data / "go").touch()
    await first
    await agent.executions.Input(pb.InputRequest(execution_id="a", end=True))
    # One that is given up may come through all the same, if there is room before the agent has heard of it.
    assert 1 << 20 <= int((await gather(call)).stdout) < 6 << 20


async def test_pictures_are_bytes_whoever_shows_them(agent: Agent) -> None:
    source = (
        "import base64\nfrom IPython.display import Image, display\n"
        "png = b'\\x89PNG\\r\\n\\x1a\\n' + bytes(range(256))\ndisplay(Image(png, format='png'))"
    )
    outcome = await agent.code(source)
    assert outcome.results is not None
    (png,) = (data for (_, mime), data in outcome.results.items() if mime == "image/png")
    assert png == b"\x89PNG\r\n\x1a\n" + bytes(range(256))
