"""One execution: its request, its events across broken connections, and all of it together."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import TypedDict

import grpc

from sandpool import events
from sandpool.decoder import Decoder
from sandpool.errors import Internal, Unavailable, broke, from_grpc, lost
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc, session_pb2

# A stream that broke with the connection to sandpool goes on where it was, if that comes back within about this.
RESUME_TRIES, RESUME_SECONDS = 20, 0.25
Sink = Callable[[bytes], None]
Events = AsyncGenerator[events.Event, None]
Request = pb.ExecuteRequest | pb.AttachRequest
Bind = Callable[[session_pb2.SessionBinding], None]


class Options(TypedDict, total=False):
    """How to run something; what is not given is the service's default, see ExecuteRequest."""

    # Of the run, in seconds; and without any reader.
    timeout: float | timedelta | None
    unattended_timeout: float | timedelta | None
    env: Mapping[str, str]
    # Of a command.
    cwd: str
    stdin: bytes
    # To name it oneself; the same id never runs twice in a session.
    execution_id: str
    background: bool
    keep_stdin_open: bool
    output_limit_bytes: int


def new_request(session: session_pb2.SessionRef, options: Options) -> pb.ExecuteRequest:
    """Without the program. Raises TypeError for an option that there is not, or for a time that is none."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    times = {name: options.get(name) for name in ("timeout", "unattended_timeout")}
    request = pb.ExecuteRequest(session=session, **{k: v for k, v in options.items() if k not in times})  # type: ignore[arg-type]
    # Chosen here, so that a repeat after a broken connection never runs twice.
    request.execution_id = request.execution_id or os.urandom(10).hex()
    for name, value in times.items():
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        if isinstance(seconds, int | float):
            getattr(request, name).FromNanoseconds(round(seconds * 1e9))
        elif seconds is not None:
            raise TypeError(f"{name} is seconds or a timedelta, and not {seconds!r}")
    return request


class _Stream:
    """The events of one execution so far, and the request that gets the rest."""

    def __init__(self, request: Request, bind: Bind) -> None:
        self.request, self.started, self.ended = request, False, False
        self._bind, self._decoder = bind, Decoder()

    def take(self, message: pb.ExecutionEvent) -> events.Event | None:
        """None for what says nothing new."""
        if message.HasField("started"):
            if self.started:
                return None
            self.started = True
            self._bind(message.started.session)
            self._pin(message.started)
        event = self._decoder.decode(message)
        self.ended = isinstance(event, events.Ended)
        return event

    def _pin(self, started: pb.ExecutionStarted) -> None:
        """From now on it is that very execution, even where the session object is not pinned."""
        ref = session_pb2.SessionRef()
        ref.CopyFrom(self.request.session)
        ref.expected_epoch = started.session.epoch
        self.request = pb.AttachRequest(session=ref, execution_id=started.execution_id)

    def resume(self) -> None:
        """The connection broke."""
        if isinstance(self.request, pb.AttachRequest) and self.started:
            self.request.position = self._decoder.resume()


async def stream(stub: execution_pb2_grpc.ExecutionServiceAsyncStub, request: Request, bind: Bind) -> Events:
    """To the end of the execution; a connection that breaks is made again. Raises SandpoolError.

    Repeating is safe: the request has an execution id, so it attaches to what runs already and never runs it again.
    """
    state, failures, may_have_run = _Stream(request, bind), 0, False
    while not state.ended:
        now = state.request
        call = stub.Execute(now) if isinstance(now, pb.ExecuteRequest) else stub.Attach(now)
        try:
            async for message in call:
                failures = 0
                event = state.take(message)
                if event is not None:
                    yield event
            if not state.ended:
                raise Internal("the stream ended and does not say how the execution did", reason="NO_END")
        except grpc.aio.AioRpcError as error:
            failures += 1
            known = from_grpc(error)
            may_have_run = may_have_run or state.started or broke(known)
            if not state.ended and not isinstance(known, Unavailable):
                raise known from error
            if not state.ended and failures > RESUME_TRIES:
                raise (lost(known) if may_have_run else known) from error
        finally:
            call.cancel()
        if not state.ended:
            await asyncio.sleep(RESUME_SECONDS)
            state.resume()


async def gather(source: Events, on_stdout: Sink | None, on_stderr: Sink | None) -> events.Result:
    """All of it. The sinks get output as it arrives. Raises SandpoolError."""
    texts = {events.Stdout: _Text(on_stdout), events.Stderr: _Text(on_stderr)}
    started, ended, error = None, None, None
    displays: list[events.Display] = []
    gaps: list[events.Gap] = []
    async with aclosing(source):
        async for event in source:
            match event:
                case events.Stdout() | events.Stderr():
                    texts[type(event)].add(event.data)
                case events.Started():
                    started = event
                case events.Display():
                    displays.append(event)
                case events.Failure():
                    error = event
                case events.Gap():
                    gaps.append(event)
                case events.Ended():
                    ended = event
    if started is None or ended is None:
        raise Internal("the stream lacks its first or last event", reason="NO_END")
    stdout, stderr = texts[events.Stdout].end(), texts[events.Stderr].end()
    return events.Result(started, stdout, stderr, displays, error, gaps, ended)


class _Text:
    """UTF-8 from chunks that split characters anywhere."""

    def __init__(self, sink: Sink | None) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []
        self._sink = sink

    def add(self, data: bytes) -> None:
        self._parts.append(self._decoder.decode(data))
        if self._sink is not None:
            self._sink(data)

    def end(self) -> str:
        return "".join(self._parts) + self._decoder.decode(b"", True)
