"""One session: run code and commands in it, and move files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, Unpack

from sandpool import events
from sandpool.calls import call
from sandpool.errors import SessionEnded
from sandpool.execution import Events, Options, Request, Sink, gather, new_request, stream
from sandpool.files import Files
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import file_pb2, session_pb2

if TYPE_CHECKING:
    from sandpool.aio import AsyncClient


class AsyncSession:
    """A session by name. It is made by the first call that needs it.

    After its first use this object stands for that very session: when it has ended (idle, stopped, lost), calls raise
    SessionEnded instead of going on in an empty one. client.session() again makes a fresh object.

    As a context manager it ends the session on the way out, with its VM and files; else it lives until it is idle.
    """

    def __init__(self, client: AsyncClient, pool: str, identifier: str, *, pin: bool = True) -> None:
        self._client = client
        self.pool, self.identifier = pool, identifier
        self.epoch: int | None = None
        self._pin = pin
        self.files = Files(self, client.channel, client.timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def ref(self) -> session_pb2.SessionRef:
        """What every request carries."""
        epoch = self.epoch if self._pin else None
        return session_pb2.SessionRef(pool=self.pool, identifier=self.identifier, expected_epoch=epoch)

    def bind(self, binding: session_pb2.SessionBinding) -> None:
        """Take over which session a call ran in."""
        self.epoch = binding.epoch or self.epoch

    # -- running ---------------------------------------------------------------------------------------------------

    def stream(self, source: str, **options: Unpack[Options]) -> Events:
        """Run Python code; its events as they happen. Raises SandpoolError."""
        request = self._request(options)
        request.code.source = source
        return self._events(request)

    def stream_command(self, command: Sequence[str] | str, **options: Unpack[Options]) -> Events:
        """Run a command (a list: program and arguments; a string: for the shell); its events as they happen."""
        request = self._request(options)
        if isinstance(command, str):
            request.command.shell = command
        else:
            request.command.argv.values.extend(command)
        return self._events(request)

    async def run(
        self,
        source: str,
        *,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        **options: Unpack[Options],
    ) -> events.Result:
        """Run Python code to its end. A program that fails is a Result, not an exception."""
        return await gather(self.stream(source, **options), on_stdout, on_stderr)

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        **options: Unpack[Options],
    ) -> events.Result:
        """Run a command to its end."""
        return await gather(self.stream_command(command, **options), on_stdout, on_stderr)

    def attach(self, execution_id: str, position: int = 0) -> Events:
        """The events of an execution, running or ended, from a position of its output."""
        return self._events(pb.AttachRequest(session=self.ref(), execution_id=execution_id, position=position))

    async def cancel(self, execution_id: str) -> bool:
        """End an execution; False if it had ended already."""
        request = pb.CancelRequest(session=self.ref(), execution_id=execution_id)
        return (await call(self._client.executions.Cancel, request, self._client.timeout)).cancelled

    async def signal(self, execution_id: str, number: int) -> None:
        """Send a POSIX signal to every process of an execution."""
        request = pb.SignalRequest(session=self.ref(), execution_id=execution_id, signal=number)
        await call(self._client.executions.Signal, request, self._client.timeout, repeatable=False)

    async def input(self, execution_id: str, data: bytes, *, end: bool = False) -> None:
        """Write to the standard input of an execution that was started with keep_stdin_open."""
        request = pb.InputRequest(session=self.ref(), execution_id=execution_id, data=data, end=end)
        await call(self._client.executions.Input, request, None, repeatable=False)

    def _request(self, options: Options) -> pb.ExecuteRequest:
        return new_request(self.ref(), options)

    def _events(self, request: Request) -> Events:
        return stream(self._client.executions, request, self.bind)

    # -- files (more of them: .files) ------------------------------------------------------------------------------

    async def write(self, path: str, data: bytes | str | os.PathLike[str] | IO[bytes]) -> file_pb2.FileInfo:
        """Write a file atomically, with its parent directories: bytes, text, a local file or an open binary one."""
        if isinstance(data, os.PathLike):
            return await self.files.upload(data, path)
        return await self.files.write(path, data)

    async def read(self, path: str) -> bytes:
        """A whole file."""
        return await self.files.read(path)

    async def upload(self, local: str | os.PathLike[str], path: str) -> file_pb2.FileInfo:
        """Copy a local file there."""
        return await self.files.upload(local, path)

    async def download(self, path: str, local: str | os.PathLike[str]) -> None:
        """Copy a file here."""
        await self.files.download(path, local)

    # -- the session itself ----------------------------------------------------------------------------------------

    async def ensure(self, timeout: float | None = None) -> session_pb2.SessionBinding:
        """Make the session if it is not there. Waits for a VM so many seconds (None: the service's 30).

        Raises NoCapacity when there was none to be had, MaxSessions, PoolNotFound.
        """
        request = session_pb2.EnsureSessionRequest(session=self.ref())
        response = await call(self._client.sessions_stub.Ensure, request, timeout)
        self.bind(response.binding)
        return response.binding

    async def info(self) -> session_pb2.Session:
        """What is known of the session. Raises NotFound, SessionEnded."""
        request = session_pb2.GetSessionRequest(session=self.ref())
        return (await call(self._client.sessions_stub.Get, request, self._client.timeout)).session

    async def stop(self) -> bool:
        """End the session and destroy its VM; False if it had ended already."""
        request, stub = session_pb2.StopSessionRequest(session=self.ref()), self._client.sessions_stub
        # By its name alone, a repeat could end the next session.
        repeatable = request.session.HasField("expected_epoch")
        try:
            answer = await call(stub.Stop, request, self._client.timeout, repeatable=repeatable, forwarded=True)
            return answer.stopped
        except SessionEnded:
            return False
