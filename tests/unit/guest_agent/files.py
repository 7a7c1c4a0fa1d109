"""What tests of the file service share: whole files in and out, and what a refusal said."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import grpc
import pytest

from sandpool.v1 import file_pb2 as pb

from .conftest import Agent


@dataclass
class Refusal:
    """Status name, reason and field of an error."""

    said: tuple[str, str, str] = ("", "", "")


@contextlib.contextmanager
def refused() -> Iterator[Refusal]:
    """The block ends with an error of the agent."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    metadata = dict(caught.value.trailing_metadata() or ())
    refusal.said = (
        caught.value.code().name,
        str(metadata.get("sandpool-reason", "")),
        str(metadata.get("sandpool-field", "")),
    )


async def write(agent: Agent, path: str, data: bytes | Iterable[bytes] = b"", **header: object) -> pb.WriteFileResponse:
    """Write a file; data may be chunks."""
    chunks = [data[at : at + 200_000] for at in range(0, len(data), 200_000)] if isinstance(data, bytes) else data

    async def requests() -> AsyncIterator[pb.WriteFileRequest]:
        yield pb.WriteFileRequest(header=pb.WriteFileHeader(path=path, **header))  # type: ignore[arg-type]
        for chunk in chunks:
            yield pb.WriteFileRequest(data=chunk)

    return await agent.files.Write(requests())


async def read(agent: Agent, path: str, **fields: object) -> bytes:
    """Read a file; the order of messages and the checksum are checked."""
    info, data, end = False, bytearray(), False
    async for response in agent.files.Read(pb.ReadFileRequest(path=path, **fields)):  # type: ignore[arg-type]
        kind = response.WhichOneof("message")
        assert not end and info == (kind != "info")
        if kind == "info":
            info = True
        elif kind == "data":
            assert 1 <= len(response.data) <= 262144
            data += response.data
        else:
            assert response.end.sha256 == hashlib.sha256(data).digest()
            end = True
    assert end
    return bytes(data)


async def listed(agent: Agent, path: str = "", *, recursive: bool = False, page_size: int = 0) -> list[str]:
    """Every path of a listing, page by page."""
    paths: list[str] = []
    token = ""
    while True:
        request = pb.ListFilesRequest(path=path, recursive=recursive, page_size=page_size, page_token=token)
        response = await agent.files.List(request)
        assert len(response.files) <= (page_size or 100)
        paths += [info.path for info in response.files]
        token = response.next_page_token
        if not token:
            return paths
