"""A real guest agent, run natively, spoken to by a stock grpcio client."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest_asyncio

from sandpool.guest.v1 import guest_pb2_grpc
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc, file_pb2_grpc


@dataclass(frozen=True)
class Agent:
    """Stubs of one agent."""

    process: asyncio.subprocess.Process
    data: Path
    executions: execution_pb2_grpc.ExecutionServiceAsyncStub
    guest: guest_pb2_grpc.GuestServiceAsyncStub
    files: file_pb2_grpc.FileServiceAsyncStub

    async def execute(self, request: pb.ExecuteRequest) -> Outcome:
        """Run to the end and gather."""
        return await gather(self.executions.Execute(request))

    async def code(self, source: str, **fields: object) -> Outcome:
        """Run Python code."""
        return await self.execute(pb.ExecuteRequest(code=pb.Code(source=source), **fields))  # type: ignore[arg-type]

    async def shell(self, text: str, **fields: object) -> Outcome:
        """Run a shell command."""
        return await self.execute(pb.ExecuteRequest(command=pb.Command(shell=text), **fields))  # type: ignore[arg-type]


@dataclass
class Outcome:
    """Everything that one stream said; offsets and order are checked while gathering."""

    stdout: bytes = b""
    stderr: bytes = b""
    results: dict[tuple[int, str], bytes] | None = None
    error: pb.ExecutionError | None = None
    gaps: list[pb.OutputGap] | None = None
    ended: pb.ExecutionEnded | None = None
    execution_id: str = ""
    attached: bool = False


async def gather(stream: AsyncIterator[pb.ExecutionEvent]) -> Outcome:
    """Read a stream to its end."""
    outcome = Outcome(results={}, gaps=[])
    assert outcome.results is not None and outcome.gaps is not None
    async for event in stream:
        kind = event.WhichOneof("event")
        assert outcome.ended is None, "an event after the terminal one"
        if kind == "started":
            outcome.execution_id, outcome.attached = event.started.execution_id, event.started.attached
        elif kind == "output":
            if event.output.stream == pb.OUTPUT_STREAM_STDOUT:
                outcome.stdout += event.output.data
            else:
                outcome.stderr += event.output.data
        elif kind == "result":
            key = (event.result.result_id, event.result.mime_type)
            assert event.result.offset == len(outcome.results.get(key, b""))
            outcome.results[key] = outcome.results.get(key, b"") + event.result.data
        elif kind == "error":
            outcome.error = event.error
        elif kind == "gap":
            outcome.gaps.append(event.gap)
        else:
            outcome.ended = event.ended
    assert outcome.ended is not None, "no terminal event"
    return outcome


@contextlib.asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Agent]:
    """One agent, and nothing left of it."""
    with tempfile.TemporaryDirectory(prefix="sp-") as directory:
        path = Path(directory)
        places = ("--unix", str(path / "s"), "--data", str(path / "data"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "guest_agent", *places, *arguments), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"ready guest")
        async with grpc.aio.insecure_channel(f"unix:{path}/s", options=[("grpc.enable_http_proxy", 0)]) as channel:
            executions: execution_pb2_grpc.ExecutionServiceAsyncStub
            executions = execution_pb2_grpc.ExecutionServiceStub(channel)  # type: ignore[assignment]
            guest: guest_pb2_grpc.GuestServiceAsyncStub
            guest = guest_pb2_grpc.GuestServiceStub(channel)  # type: ignore[assignment]
            files: file_pb2_grpc.FileServiceAsyncStub
            files = file_pb2_grpc.FileServiceStub(channel)  # type: ignore[assignment]
            yield Agent(process, path / "data", executions, guest, files)
        with contextlib.suppress(ProcessLookupError):  # a test may have ended it
            process.terminate()
        assert await process.wait() == 0


@pytest_asyncio.fixture
async def agent() -> AsyncIterator[Agent]:
    """For one test."""
    async with running() as started:
        yield started
