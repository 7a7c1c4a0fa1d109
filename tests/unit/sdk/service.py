"""A small service of the public API in this process, and a connection to it that can be cut."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc, file_pb2, file_pb2_grpc, session_pb2
from service_kit import errors

# Of one execution: a text in chunks, a picture in two parts, an empty value.
PICTURE = b"\x89PNG" + bytes(range(256)) * 4


def events() -> list[pb.ExecutionEvent]:
    """In order, with their positions."""
    binding = session_pb2.SessionBinding(epoch=7, created=True, vm_id="vm")
    binding.previous.end_reason = session_pb2.END_REASON_IDLE
    first, half = "grüße".encode(), len(PICTURE) // 2
    png = {"result_id": 1, "mime_type": "image/png"}
    made = [
        pb.ExecutionEvent(started=pb.ExecutionStarted(execution_id="?", session=binding)),
        pb.ExecutionEvent(output=pb.OutputChunk(stream=pb.OUTPUT_STREAM_STDOUT, offset=0, data=first[:3])),
        pb.ExecutionEvent(output=pb.OutputChunk(stream=pb.OUTPUT_STREAM_STDOUT, offset=3, data=first[3:])),
        pb.ExecutionEvent(result=pb.ResultChunk(**png, offset=0, data=PICTURE[:half])),
        pb.ExecutionEvent(result=pb.ResultChunk(**png, offset=half, data=PICTURE[half:], last=True)),
        pb.ExecutionEvent(result=pb.ResultChunk(result_id=2, mime_type="text/plain", last=True, is_value=True)),
        pb.ExecutionEvent(output=pb.OutputChunk(stream=pb.OUTPUT_STREAM_STDERR, offset=0, data=b"\xff!")),
        pb.ExecutionEvent(ended=pb.ExecutionEnded(exit_code=0, timings=pb.StageTimings(total_us=5))),
    ]
    position = 0
    for event in made:
        position += len(event.output.data) + len(event.result.data)
        event.next_position = position
    return made


@dataclass
class Service(execution_pb2_grpc.ExecutionServiceServicer, file_pb2_grpc.FileServiceServicer):
    """Runs an execution once per id, and remembers what it was asked.

    Waits for go at the event of index hold, and before the bytes of the file at slow.
    """

    script: list[pb.ExecutionEvent] = field(default_factory=events)
    hold: int | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[Any] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    refuse: errors.SandpoolError | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    slow: str | None = None
    info: file_pb2.FileInfo = field(default_factory=file_pb2.FileInfo)
    damage: bytes = b""

    async def Execute(self, request: pb.ExecuteRequest, context: object) -> AsyncIterator[pb.ExecutionEvent]:  # noqa: N802
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        if request.execution_id not in self.runs:
            self.runs.append(request.execution_id)
        async for event in self._from(0, request.execution_id):
            yield event

    async def Attach(self, request: pb.AttachRequest, context: object) -> AsyncIterator[pb.ExecutionEvent]:  # noqa: N802
        self.requests.append(request)
        if request.execution_id not in self.runs:
            raise errors.NotFound("EXECUTION_NOT_FOUND", "no such execution")
        async for event in self._from(request.position, request.execution_id):
            yield event

    async def _from(self, position: int, execution_id: str) -> AsyncIterator[pb.ExecutionEvent]:
        """As a guest does it: what has no payload is said again at its position."""
        for index, event in enumerate(self.script):
            if index == self.hold:
                self.holding.set()
                await self.go.wait()
            made = pb.ExecutionEvent.FromString(event.SerializeToString())
            if event.HasField("started"):
                made.started.execution_id, made.next_position = execution_id, position
            size = len(event.output.data) + len(event.result.data)
            if event.HasField("started") or event.next_position - size >= position:
                yield made

    async def Write(  # noqa: N802
        self, requests: AsyncIterator[file_pb2.WriteFileRequest], context: object
    ) -> file_pb2.WriteFileResponse:
        path, data = "", b""
        async for request in requests:
            self.requests.append(request)
            if self.refuse is not None:
                raise self.refuse
            path, data = request.header.path or path, data + request.data
        self.files[path] = data
        digest = hashlib.sha256(data + self.damage).digest()
        return file_pb2.WriteFileResponse(file=file_pb2.FileInfo(path=path, size_bytes=len(data)), sha256=digest)

    async def Read(  # noqa: N802
        self, request: file_pb2.ReadFileRequest, context: object
    ) -> AsyncIterator[file_pb2.ReadFileResponse]:
        if request.path not in self.files:
            raise errors.NotFound("FILE_NOT_FOUND", "no such file", field="path")
        data = self.files[request.path]
        yield file_pb2.ReadFileResponse(info=file_pb2.ReadFileInfo(file=self.info))
        if request.path == self.slow:
            await self.go.wait()
        for offset in range(0, len(data), 100_000):
            yield file_pb2.ReadFileResponse(data=data[offset : offset + 100_000])
        digest = hashlib.sha256(data + self.damage).digest()
        yield file_pb2.ReadFileResponse(end=file_pb2.ReadFileEnd(sha256=digest))


class Link:
    """A relay to a unix socket that can be cut: every connection through it breaks, new ones are fine."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers += [writer, far_writer]
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    def cut(self) -> None:
        """As a network does it."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers = []


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
