"""Files of a session: below /mnt/data, streamed, checked by SHA-256."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from stat import S_ISREG
from typing import IO, Protocol

import grpc

from sandpool.calls import call, mapped_once, pages
from sandpool.errors import DataLoss, mapped
from sandpool.upload import upload
from sandpool.v1 import file_pb2 as pb
from sandpool.v1 import file_pb2_grpc, session_pb2

CHUNK_BYTES = 512 << 10
# Of a file's mode, what a copy takes along.
PERMISSIONS = 0o777
Progress = Callable[[int], None]


class Owner(Protocol):
    """The session that the files belong to."""

    def ref(self) -> session_pb2.SessionRef:
        """What every request carries."""

    def bind(self, binding: session_pb2.SessionBinding) -> None:
        """Take over which session a call ran in."""


class Files:
    """Paths are relative to /mnt/data, or absolute below it. Every call raises SandpoolError."""

    def __init__(self, owner: Owner, channel: grpc.aio.Channel, timeout: float | None) -> None:
        self._owner, self._timeout = owner, timeout
        self._stub: file_pb2_grpc.FileServiceAsyncStub = file_pb2_grpc.FileServiceStub(channel)

    async def write(self, path: str, data: bytes | str | IO[bytes], *, mode: int | None = None) -> pb.FileInfo:
        """Write a whole file atomically, with its parent directories. An open file is read from where it stands."""
        if isinstance(data, str):
            data = data.encode()
        if isinstance(data, bytes | bytearray | memoryview):
            return await self._write(path, _slices(bytes(data)), mode=mode, size=len(data))
        return await self._write(path, _blocks(data, None), mode=mode)

    async def upload(self, local: str | os.PathLike[str], path: str, progress: Progress | None = None) -> pb.FileInfo:
        """Copy a regular file there, with its permission bits and its time. Raises OSError, too.

        progress gets the bytes of each step.
        """
        if not S_ISREG(Path(local).stat().st_mode):  # to open a pipe would wait for its writer
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(local))
        with Path(local).open("rb") as file:  # noqa: ASYNC230
            stat = os.fstat(file.fileno())
            # Files of /proc have bytes and say 0.
            mode, size = stat.st_mode & PERMISSIONS, stat.st_size or None
            return await self._write(path, _blocks(file, progress), mode=mode, size=size, modified_ns=stat.st_mtime_ns)

    async def _write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        mode: int | None,
        size: int | None = None,
        modified_ns: int | None = None,
    ) -> pb.FileInfo:
        digest = hashlib.sha256()
        header = pb.WriteFileHeader(session=self._owner.ref(), path=path, mode=mode, make_parents=True, size_bytes=size)
        if modified_ns is not None:
            header.modified_at.FromNanoseconds(modified_ns)

        async def digested() -> AsyncIterator[bytes]:
            async for data in chunks:
                digest.update(data)
                yield data

        with mapped_once():
            response = await upload(self._stub, header, digested())
        self._owner.bind(response.session)
        if response.sha256 != digest.digest():
            raise DataLoss("what was written is not what was sent", reason="CHECKSUM_MISMATCH")
        return response.file

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file or a part of it, in memory."""
        return b"".join([data async for data in self.chunks(path, offset=offset, length=length)])

    async def download(self, path: str, local: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Copy a file here, with its time and those of its permission bits that the umask leaves.

        Nothing is at local before it is complete and checked. Raises OSError, too.
        """
        target = Path(local)
        # Of this call alone: another one may download to the same place.
        part = target.with_name(f".{os.urandom(8).hex()}.part")
        try:
            with part.open("xb") as file:
                info = await self._copy(path, file, progress)
                file.flush()
                _adopt(file.fileno(), info)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    async def _copy(self, path: str, file: IO[bytes], progress: Progress | None) -> pb.FileInfo:
        info = pb.FileInfo()
        async with aclosing(self._messages(path, 0, None)) as messages:
            async for message in messages:
                if message.HasField("info"):
                    info = message.info.file
                else:
                    await asyncio.to_thread(file.write, message.data)
                    if progress is not None:
                        progress(len(message.data))
        return info

    async def chunks(self, path: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """A file or a part of it as it arrives. Raises DataLoss at the end if a byte is not what was sent."""
        async with aclosing(self._messages(path, offset, length)) as messages:
            async for message in messages:
                if message.data:
                    yield message.data

    async def _messages(self, path: str, offset: int, length: int | None) -> AsyncGenerator[pb.ReadFileResponse, None]:
        """Info, then data. Raises DataLoss at the end."""
        digest, expected = hashlib.sha256(), None
        request = pb.ReadFileRequest(session=self._owner.ref(), path=path, offset=offset, length=length)
        call = self._stub.Read(request)
        try:
            with mapped():
                async for message in call:
                    if message.HasField("end"):
                        expected = message.end.sha256
                        continue
                    if message.HasField("info"):
                        self._owner.bind(message.info.session)
                    digest.update(message.data)
                    yield message
        finally:
            call.cancel()
        if expected != digest.digest():
            raise DataLoss("what arrived is not what was sent", reason="CHECKSUM_MISMATCH")

    async def list(self, path: str = "", *, recursive: bool = False) -> AsyncIterator[pb.FileInfo]:
        """Every entry of a directory, by path."""

        async def fetch(token: str) -> pb.ListFilesResponse:
            request = pb.ListFilesRequest(
                session=self._owner.ref(), path=path, recursive=recursive, page_size=1000, page_token=token
            )
            return await call(self._stub.List, request, self._timeout)

        async for file in pages(fetch, "files"):
            yield file

    async def stat(self, path: str) -> pb.FileInfo:
        """Of the path itself: a link is not followed."""
        request = pb.StatFileRequest(session=self._owner.ref(), path=path)
        return (await call(self._stub.Stat, request, self._timeout)).file

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """A file, an empty directory, or all of a directory."""
        request = pb.RemoveFileRequest(session=self._owner.ref(), path=path, recursive=recursive)
        await call(self._stub.Remove, request, self._timeout, repeatable=False)

    async def move(self, source: str, destination: str) -> pb.FileInfo:
        """Rename atomically."""
        request = pb.MoveFileRequest(session=self._owner.ref(), source=source, destination=destination)
        return (await call(self._stub.Move, request, self._timeout, repeatable=False)).file

    async def mkdir(self, path: str) -> pb.FileInfo:
        """A directory and its parents; one that is there is fine."""
        request = pb.MakeDirRequest(session=self._owner.ref(), path=path)
        response = await call(self._stub.MakeDir, request, self._timeout)
        self._owner.bind(response.session)
        return response.file


def _adopt(descriptor: int, info: pb.FileInfo) -> None:
    """A new file gets the time of the one it is a copy of, and its permission bits as far as the umask allows."""
    allowed = os.fstat(descriptor).st_mode
    allowed |= (allowed & 0o444) >> 2
    os.fchmod(descriptor, info.mode & PERMISSIONS & allowed)
    modified_ns = info.modified_at.ToNanoseconds()
    os.utime(descriptor, ns=(modified_ns, modified_ns))


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for offset in range(0, len(data), CHUNK_BYTES):
        yield data[offset : offset + CHUNK_BYTES]


async def _blocks(file: IO[bytes], progress: Progress | None) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield data
        if progress is not None:
            progress(len(data))
