"""sandpool.v1.ExecutionService as the guest serves it."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from grpclib.const import Status

from guest_agent.command import CommandRun
from guest_agent.execution import Execution, ExecutionForgotten, ExecutionIdTaken, Executions
from guest_agent.launch import Launcher
from guest_agent.python_language import Cell, PythonLanguage, QueueFull
from guest_agent.rpc import Refused
from sandpool.v1 import execution_pb2 as pb

DEFAULT_TIMEOUT_SECONDS = 220.0
BACKGROUND_TIMEOUT_SECONDS = 86_400.0
MAX_REQUEST_BYTES = 1 << 20
# Each has a buffer (execution.py), descriptors and processes.
MAX_COMMANDS = 64
_log = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9_.-]{0,64}")


class ExecutionService:
    """Starts, streams and ends executions."""

    def __init__(self, executions: Executions, python: PythonLanguage, launcher: Launcher) -> None:
        self._executions = executions
        self._python = python
        self._launcher = launcher
        self._commands = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def methods(self) -> dict[str, Any]:
        """By rpc name."""
        return {
            "Execute": self.execute,
            "Attach": self.attach,
            "Input": self.input,
            "Signal": self.signal,
            "Cancel": self.cancel,
            "Get": self.get,
            "List": self.list,
        }

    async def execute(self, request: pb.ExecuteRequest) -> AsyncIterator[pb.ExecutionEvent]:
        """Start, or attach to what the same request started before, and stream."""
        _check(request)
        known = self._executions.by_id.get(request.execution_id)
        if known is None and request.HasField("command") and self._commands >= MAX_COMMANDS:
            message = f"{MAX_COMMANDS} commands run already"
            raise Refused(Status.RESOURCE_EXHAUSTED, "TOO_MANY_COMMANDS", message)
        try:
            execution, new = self._executions.open(request)
        except ExecutionIdTaken:
            raise Refused(Status.ALREADY_EXISTS, "EXECUTION_EXISTS", "this id has another request") from None
        except ExecutionForgotten:
            message = "this id has run to its end, and what it was is kept no longer"
            raise Refused(Status.FAILED_PRECONDITION, "EXECUTION_ENDED", message) from None
        if new:
            self._launch(request, execution)
        async for event in execution.events(0, attached=not new):
            yield event

    def _launch(self, request: pb.ExecuteRequest, execution: Execution) -> None:
        default = BACKGROUND_TIMEOUT_SECONDS if request.background else DEFAULT_TIMEOUT_SECONDS
        timeout = request.timeout.ToMilliseconds() / 1000 if request.HasField("timeout") else default
        if request.WhichOneof("program") == "command":
            self._commands += 1
            self._own(execution, self._run(CommandRun(request, execution, self._launcher, timeout)))
            return
        cell = Cell(execution, request.code.source, dict(request.env), request.cwd or None, request.stdin, timeout)
        try:
            self._python.submit(cell)
        except QueueFull:
            self._executions.forget(execution)
            raise Refused(Status.RESOURCE_EXHAUSTED, "LANGUAGE_QUEUE_FULL", "16 executions wait already") from None
        self._own(execution, execution.ended())

    async def _run(self, command: CommandRun) -> None:
        try:
            await command.run()
        finally:
            self._commands -= 1

    def _own(self, execution: Execution, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._counted(execution, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _counted(self, execution: Execution, work: Coroutine[Any, Any, None]) -> None:
        activity = self._executions.activity
        counted = not execution.background or self._executions.background_is_activity
        if counted:
            activity.begin_execution()
        try:
            await work
        except Exception:
            _log.exception("an execution failed inside the agent")
        finally:
            if execution.end is None:  # readers wait for it
                execution.finish(pb.ExecutionEnded(exit_code=1))
            if counted:
                activity.end_execution(time.monotonic())

    async def attach(self, request: pb.AttachRequest) -> AsyncIterator[pb.ExecutionEvent]:
        """Stream from a position."""
        execution = self._find(request.execution_id)
        if request.position > execution.output.position:
            raise Refused(Status.INVALID_ARGUMENT, "BAD_POSITION", "beyond the end of the output", "position")
        async for event in execution.events(request.position, attached=True):
            yield event

    async def input(self, request: pb.InputRequest) -> pb.InputResponse:
        """Write to standard input."""
        if len(request.data) > MAX_REQUEST_BYTES:
            raise Refused(Status.INVALID_ARGUMENT, "INVALID_FIELD", "at most 1 MiB", "data")
        execution = self._running(request.execution_id)
        stdin = execution.stdin
        if stdin is not None:
            await stdin.room()  # what is queued stays so, though its call is given up
        if stdin is None or stdin.closed:
            raise Refused(Status.FAILED_PRECONDITION, "STDIN_CLOSED", "standard input is closed")
        stdin.write(request.data)
        if request.end:
            stdin.close()
        await stdin.drain()
        return pb.InputResponse()

    async def signal(self, request: pb.SignalRequest) -> pb.SignalResponse:
        """Signal the program."""
        execution = self._running(request.execution_id)
        if not 1 <= request.signal <= 31:
            raise Refused(Status.INVALID_ARGUMENT, "BAD_SIGNAL", "must be 1 to 31", "signal")
        if execution.signal is not None:
            execution.signal(request.signal)
        return pb.SignalResponse()

    async def cancel(self, request: pb.CancelRequest) -> pb.CancelResponse:
        """End the execution."""
        execution = self._find(request.execution_id)
        if execution.end is not None:
            return pb.CancelResponse(cancelled=False)
        execution.cancel(pb.KILL_REASON_CANCELLED)
        return pb.CancelResponse(cancelled=True)

    async def get(self, request: pb.GetExecutionRequest) -> pb.GetExecutionResponse:
        """Describe one."""
        return pb.GetExecutionResponse(execution=self._find(request.execution_id).describe())

    async def list(self, request: pb.ListExecutionsRequest) -> pb.ListExecutionsResponse:
        """Newest first. The token is the number of the last one of the page before."""
        if not re.fullmatch(r"\d{0,15}", request.page_token):
            raise Refused(Status.INVALID_ARGUMENT, "INVALID_FIELD", "not a token of ours", "page_token")
        before = int(request.page_token or 10**15)
        older = [one for one in reversed(self._executions.by_id.values()) if one.number < before]
        page = older[: max(1, min(request.page_size or 100, 1000))]
        token = str(page[-1].number) if len(page) < len(older) else ""
        return pb.ListExecutionsResponse(executions=[one.describe() for one in page], next_page_token=token)

    def _find(self, execution_id: str) -> Execution:
        execution = self._executions.by_id.get(execution_id)
        if execution is None:
            raise Refused(Status.NOT_FOUND, "EXECUTION_NOT_FOUND", "no such execution", "execution_id")
        return execution

    def _running(self, execution_id: str) -> Execution:
        execution = self._find(execution_id)
        if execution.end is not None:
            raise Refused(Status.FAILED_PRECONDITION, "EXECUTION_ENDED", "the execution has ended")
        return execution


def _check(request: pb.ExecuteRequest) -> None:
    """The scheduler has checked all this; the agent does not rely on it."""
    size = len(request.code.source.encode()) + len(request.stdin)
    size += sum(len(name) + len(value) for name, value in request.env.items())
    if size > MAX_REQUEST_BYTES:
        raise Refused(Status.INVALID_ARGUMENT, "TOO_LARGE", "code, stdin and env exceed 1 MiB; use Write", "code")
    if not _ID.fullmatch(request.execution_id):
        raise Refused(Status.INVALID_ARGUMENT, "BAD_EXECUTION_ID", "1 to 64 of A-Z a-z 0-9 _ . -", "execution_id")
    program = request.WhichOneof("program")
    if program is None or (program == "command" and request.command.WhichOneof("program") is None):
        raise Refused(Status.INVALID_ARGUMENT, "NO_PROGRAM", "code or command is required", "program")
    if program == "code" and request.code.language not in ("", "python"):
        raise Refused(Status.INVALID_ARGUMENT, "UNKNOWN_LANGUAGE", "only python", "code.language")
    if request.command.HasField("argv") and not request.command.argv.values:
        raise Refused(Status.INVALID_ARGUMENT, "NO_PROGRAM", "argv is empty", "command.argv")
