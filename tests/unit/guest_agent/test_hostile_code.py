"""Code that turns on its own worker, on a real guest agent: it ends its execution at worst, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import struct
from pathlib import Path

import pytest

from sandpool.v1 import execution_pb2 as pb

from .conftest import Agent
from .test_executions import seconds
from .test_worker import exit_code

ENDED = {"exit": 0, "cpu": 0.0, "memory": 1}


def forging(kind: str, payload: str, rest: bytes = b"") -> str:
    """A cell that writes a frame of its own to the agent, in the place of its worker."""
    frame = struct.pack(">BI", ord(kind), len(payload.encode())) + payload.encode() + rest
    return f"import os, sys, time\nos.write(int(sys.argv[2]), {frame!r})\ntime.sleep(0.2)"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("E", json.dumps(ENDED | {"cpu": float("nan")})),
        ("E", json.dumps(ENDED | {"cpu": -1.0})),
        ("E", json.dumps(ENDED | {"cpu": float("inf")})),
        ("E", json.dumps(ENDED | {"memory": 1 << 70})),
        ("E", json.dumps(ENDED | {"exit": "x"})),
        ("E", "[]"),
        ("E", "[" * 100_000),
        ("R", json.dumps({"id": 0, "mime": "a", "value": False, "size": 0})),
        ("R", json.dumps({"id": 1 << 32, "mime": "a", "value": False, "size": 0})),
        ("R", json.dumps({"id": 1, "mime": "a", "value": False, "size": -1})),
        ("?", "{}"),
    ],
)
async def test_a_forged_frame_that_says_the_impossible_ends_the_worker(agent: Agent, kind: str, payload: str) -> None:
    outcome = await agent.code(forging(kind, payload))
    assert outcome.ended is not None and outcome.ended.state_lost and outcome.results == {}
    assert 0 <= outcome.ended.cpu_seconds < 60
    assert (await agent.code("print(1)")).stdout == b"1\n"


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1); os.dup2(1, 2)",
        "import os; os.closerange(0, 3)",
        "import sys; sys.stdout = sys.stderr = None",
        "import sys; del sys.stdout, sys.stderr",
        "import sys; sys.stdout.close(); sys.stderr.detach()",
        "import builtins; builtins.print = lambda *_: None\nfrom builtins import __dict__ as d; del d['print']"
        "\nimport sys; print = lambda *words, file=None: (file or sys.stdout).write(' '.join(words) + '\\n')",
    ],
)
async def test_each_cell_begins_with_standard_streams_that_work(agent: Agent, source: str) -> None:
    assert exit_code(await agent.code(f"kept = 1\n{source}")) in (0, 1)
    outcome = await agent.code("import sys; print('out'); print('err', file=sys.stderr); kept")
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")
    assert outcome.results == {(1, "text/plain"): b"1"}


@pytest.mark.parametrize(
    "source",
    [
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "import signal; signal.signal(signal.SIGINT, lambda *_: None)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))",
    ],
)
async def test_each_cell_can_be_interrupted_whatever_one_before_has_done(agent: Agent, source: str) -> None:
    await agent.code(f"kept = 1\n{source}")
    outcome = await agent.code("while True: pass", timeout=seconds(0.2))
    assert outcome.ended is not None
    assert (outcome.ended.killed, outcome.ended.state_lost) == (pb.KILL_REASON_TIMEOUT, False)
    assert (await agent.code("print(kept)")).stdout == b"1\n"


async def test_a_worker_that_was_stopped_goes_on_with_the_next_cell(agent: Agent) -> None:
    got = await agent.code("import os; print(os.getpid())")
    os.kill(int(got.stdout), signal.SIGSTOP)
    assert (await agent.code("print('on')", timeout=seconds(60))).stdout == b"on\n"


async def test_an_alarm_between_two_cells_is_nobodys(agent: Agent) -> None:
    source = (
        "import os, signal, time\n"
        "def ring(*_): open('rung', 'w').close(); raise ValueError\n"
        "kept = signal.signal(signal.SIGALRM, ring); signal.setitimer(signal.ITIMER_REAL, 0.05)"
    )
    await agent.code(source)
    await agent.shell("while [ ! -e rung ]; do sleep 0.01; done")
    assert (await agent.code("print('kept' in globals())")).stdout == b"True\n"


async def test_a_file_named_as_a_library_is_imported_by_code_and_not_by_the_worker(agent: Agent) -> None:
    (agent.data / "random.py").write_text("mine = 1")
    (agent.data / "IPython.py").write_text("raise SystemExit")
    (agent.data / "helper.py").write_text("value = 42")
    assert exit_code(await agent.code("import os; os._exit(0)")) == 0
    outcome = await agent.code("import helper\nprint(helper.value)")
    assert (outcome.stdout, outcome.error) == (b"42\n", None)


@pytest.mark.parametrize(
    "source",
    [
        "class R:\n  def __repr__(self):\n    while True: pass\nR()",
        "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E",
        "import sys\nclass S:\n  write = len\n  def flush(self):\n    while True: pass\nsys.stdout = S()",
        "while True:\n  try:\n    while True: pass\n  except KeyboardInterrupt: pass",
    ],
)
async def test_what_never_ends_ends_by_its_timeout(agent: Agent, source: str) -> None:
    outcome = await agent.code(source, timeout=seconds(0.2))
    assert outcome.ended is not None and outcome.ended.killed == pb.KILL_REASON_TIMEOUT
    assert (await agent.code("print(1)")).stdout in (b"1\n", b"")  # its own sys.stdout may have stayed
    assert exit_code(await agent.code("1")) == 0


async def test_recursion_in_c_is_an_error_or_the_end_of_the_worker(agent: Agent) -> None:
    source = (
        "import sys; sys.setrecursionlimit(10**9)\nnested = []\n"
        "for _ in range(10**6): nested = [nested]\nrepr(nested); None"
    )
    outcome = await agent.code(source)
    assert outcome.ended is not None and (outcome.error is not None or outcome.ended.signal == 11)
    assert (await agent.code("print(1)")).stdout == b"1\n"


async def test_a_hundred_megabytes_shown_at_once_pass_through_the_agent(agent: Agent) -> None:
    await agent.code("display({'a/b': 'x' * 9_000_000}, raw=True)")  # its buffer is as large as it gets
    before = resident(agent)
    seen, last = 0, None
    request = pb.ExecuteRequest(code=pb.Code(source="display({'a/b': 'x' * 100_000_000}, raw=True)"))
    async for event in agent.executions.Execute(request):
        assert not event.HasField("gap")
        seen += len(event.result.data)
        last = event
    assert seen == 100_000_000 and last is not None and last.ended.exit_code == 0
    assert resident(agent) - before < 32 << 20


async def test_results_without_end_end_with_one_marker(agent: Agent) -> None:
    outcome = await agent.code("for n in range(10_000): display({'a/b': str(n)}, raw=True)")
    assert outcome.results is not None and len(outcome.results) == 4096 and exit_code(outcome) == 0
    assert outcome.gaps is not None
    assert [(gap.reason, gap.result_id) for gap in outcome.gaps] == [(pb.GAP_REASON_OUTPUT_LIMIT, 4097)]


def resident(agent: Agent) -> int:
    """Bytes of the agent's memory."""
    pages = Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
