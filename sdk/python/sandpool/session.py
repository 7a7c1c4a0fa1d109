"""One session: run code and commands in it, and move files."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from sandpool import events
from sandpool.errors import SessionEnded, from_grpc, mapped
from sandpool.files import Files
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import session_pb2

if TYPE_CHECKING:
    from sandpool.aio import AsyncClient

# A stream that broke with the connection to sandpool goes on where it was, if that comes back within about this.
RESUME_TRIES, RESUME_SECONDS = 12, 0.25
Sink = Callable[[bytes], None]


@dataclass(frozen=True)
class Options:
    """How to run something. timeout: seconds of the run; the service's default is 220. cwd: of a command."""

    timeout: float | None = None
    env: Mapping[str, str] | None = None
    cwd: str = ""
    stdin: bytes = b""
    execution_id: str = ""
    background: bool = False
    keep_stdin_open: bool = False
    output_limit_bytes: int = 0


class AsyncSession:
    """A session by name. It is made by the first call that needs it.

    After its first use this object stands for that very session: when it has ended (idle, stopped, lost), calls raise
    SessionEnded instead of going on in an empty one. client.session() again makes a fresh object.
    """

    def __init__(self, client: AsyncClient, pool: str, identifier: str, *, pin: bool = True) -> None:
        self._client = client
        self.pool, self.identifier = pool, identifier
        self.epoch: int | None = None
        self._pin = pin
        self.files = Files(self, client.channel)

    def ref(self) -> session_pb2.SessionRef:
        """What every request carries."""
        epoch = self.epoch if self._pin else None
        return session_pb2.SessionRef(pool=self.pool, identifier=self.identifier, expected_epoch=epoch)

    def bind(self, binding: session_pb2.SessionBinding) -> None:
        """Take over which session a call ran in."""
        self.epoch = binding.epoch or self.epoch

    # -- running ---------------------------------------------------------------------------------------------------

    def stream(self, source: str, **fields: Any) -> AsyncIterator[events.Event]:
        """Run Python code; its events as they happen. fields: as Options. Raises SandpoolError."""
        request = self._request(fields)
        request.code.source = source
        return self._events(request)

    def stream_command(self, command: Sequence[str] | str, **fields: Any) -> AsyncIterator[events.Event]:
        """Run a command (a list: program and arguments; a string: for the shell); its events as they happen."""
        request = self._request(fields)
        if isinstance(command, str):
            request.command.shell = command
        else:
            request.command.argv.values.extend(command)
        return self._events(request)

    async def run(
        self, source: str, *, on_stdout: Sink | None = None, on_stderr: Sink | None = None, **fields: Any
    ) -> events.Result:
        """Run Python code to its end. fields: as Options. A program that fails is a Result, not an exception."""
        return await _gather(self.stream(source, **fields), on_stdout, on_stderr)

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        **fields: Any,
    ) -> events.Result:
        """Run a command to its end. fields: as Options."""
        return await _gather(self.stream_command(command, **fields), on_stdout, on_stderr)

    def attach(self, execution_id: str, position: int = 0) -> AsyncIterator[events.Event]:
        """The events of an execution, running or ended, from a position of its output."""
        return self._events(pb.AttachRequest(session=self.ref(), execution_id=execution_id, position=position))

    async def cancel(self, execution_id: str) -> bool:
        """End an execution; False if it had ended already."""
        with mapped():
            request = pb.CancelRequest(session=self.ref(), execution_id=execution_id)
            return (await self._client.executions.Cancel(request)).cancelled

    async def signal(self, execution_id: str, number: int) -> None:
        """Send a POSIX signal to every process of an execution."""
        with mapped():
            request = pb.SignalRequest(session=self.ref(), execution_id=execution_id, signal=number)
            await self._client.executions.Signal(request)

    async def input(self, execution_id: str, data: bytes, *, end: bool = False) -> None:
        """Write to the standard input of an execution that was started with keep_stdin_open."""
        with mapped():
            request = pb.InputRequest(session=self.ref(), execution_id=execution_id, data=data, end=end)
            await self._client.executions.Input(request)

    def _request(self, fields: dict[str, Any]) -> pb.ExecuteRequest:
        given = Options(**fields)
        request = pb.ExecuteRequest(
            session=self.ref(),
            # Chosen here, so that a repeat after a broken connection never runs twice.
            execution_id=given.execution_id or os.urandom(10).hex(),
            env=given.env or {},
            cwd=given.cwd,
            stdin=given.stdin,
            background=given.background,
            keep_stdin_open=given.keep_stdin_open,
            output_limit_bytes=given.output_limit_bytes,
        )
        if given.timeout is not None:
            request.timeout.FromNanoseconds(int(given.timeout * 1e9))
        return request

    async def _events(self, request: pb.ExecuteRequest | pb.AttachRequest) -> AsyncIterator[events.Event]:
        decoder, failures, started = events.Decoder(), 0, False
        while True:
            try:
                execute, attach = self._client.executions.Execute, self._client.executions.Attach
                call = execute(request) if isinstance(request, pb.ExecuteRequest) else attach(request)
                async for message in call:
                    failures = 0
                    if message.HasField("started"):
                        self.bind(message.started.session)
                        if started:
                            continue
                        started = True
                    event = decoder.decode(message)
                    if event is not None:
                        yield event
                return
            except grpc.aio.AioRpcError as error:
                failures += 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or failures > RESUME_TRIES:
                    raise from_grpc(error) from error
            await asyncio.sleep(RESUME_SECONDS)
            if started:
                request = pb.AttachRequest(
                    session=self.ref(), execution_id=request.execution_id, position=decoder.position
                )

    # -- the session itself ----------------------------------------------------------------------------------------

    async def ensure(self) -> session_pb2.SessionBinding:
        """Make the session if it is not there. Raises ResourceExhausted when there is no VM to be had."""
        with mapped():
            response = await self._client.sessions_stub.Ensure(session_pb2.EnsureSessionRequest(session=self.ref()))
        self.bind(response.binding)
        return response.binding

    async def info(self) -> session_pb2.Session:
        """What is known of the session. Raises NotFound, SessionEnded."""
        with mapped():
            return (await self._client.sessions_stub.Get(session_pb2.GetSessionRequest(session=self.ref()))).session

    async def stop(self) -> bool:
        """End the session and destroy its VM; False if it had ended already."""
        try:
            with mapped():
                request = session_pb2.StopSessionRequest(session=self.ref())
                return (await self._client.sessions_stub.Stop(request)).stopped
        except SessionEnded:
            return False


async def _gather(stream: AsyncIterator[events.Event], on_stdout: Sink | None, on_stderr: Sink | None) -> events.Result:
    texts: dict[type, codecs.IncrementalDecoder] = {events.Stdout: codecs.getincrementaldecoder("utf-8")("replace")}
    texts[events.Stderr] = codecs.getincrementaldecoder("utf-8")("replace")
    parts: dict[type, list[str]] = {events.Stdout: [], events.Stderr: []}
    sinks = {events.Stdout: on_stdout, events.Stderr: on_stderr}
    started, ended, error = None, None, None
    displays: list[events.Display] = []
    gaps: list[events.Gap] = []
    async for event in stream:
        if isinstance(event, events.Stdout | events.Stderr):
            parts[type(event)].append(texts[type(event)].decode(event.data))
            sink = sinks[type(event)]
            if sink is not None:
                sink(event.data)
        elif isinstance(event, events.Started):
            started = event
        elif isinstance(event, events.Display):
            displays.append(event)
        elif isinstance(event, events.Failure):
            error = event
        elif isinstance(event, events.Gap):
            gaps.append(event)
        else:
            ended = event
    assert started is not None and ended is not None, "the service always sends both"
    stdout, stderr = ("".join(parts[kind]) + texts[kind].decode(b"", True) for kind in (events.Stdout, events.Stderr))
    return events.Result(started, stdout, stderr, displays, error, gaps, ended)
