"""Files through the scheduler, on a real guest agent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from sandpool.v1 import file_pb2 as pb
from sandpool.v1 import session_pb2

from ..guest_agent.conftest import gather
from .conftest import World, failure, ref
from .test_scheduler import seal


async def messages(size: int = 0, **header: Any) -> AsyncIterator[pb.WriteFileRequest]:
    """A whole upload of zeros."""
    header.setdefault("path", "a")
    yield pb.WriteFileRequest(header=pb.WriteFileHeader(session=ref(), **header))
    for begin in range(0, size, 1 << 20):
        yield pb.WriteFileRequest(data=bytes(min(size - begin, 1 << 20)))


async def read(world: World, **fields: Any) -> tuple[pb.ReadFileInfo, bytes]:
    info, data, digest = None, b"", b""
    async for response in world.files.Read(pb.ReadFileRequest(session=ref(), **fields)):
        kind = response.WhichOneof("message")
        if kind == "info":
            info = response.info
        elif kind == "data":
            data += response.data
        else:
            digest = response.end.sha256
    assert info is not None and digest == hashlib.sha256(data).digest()
    return info, data


async def test_a_file_goes_in_and_comes_out(world: World) -> None:
    await world.add_guest("vm1")
    written = await world.files.Write(messages(20_000_000))
    assert written.session.created and written.session.vm_id == "vm1"
    assert written.sha256 == hashlib.sha256(bytes(20_000_000)).digest()
    info, data = await read(world, path="a")
    assert len(data) == 20_000_000 and (info.session.epoch, info.session.created) == (1, False)
    assert (await read(world, path="/mnt/data/a", offset=10, length=5))[1] == bytes(5)
    assert (await gather(world.executions.Execute(world.shell("wc -c < a")))).stdout == b"20000000\n"


async def test_the_unary_calls_of_files(world: World) -> None:
    await world.add_guest("vm1")
    made = await world.files.MakeDir(pb.MakeDirRequest(session=ref(), path="d/e"))
    assert made.session.created and made.file.type == pb.FILE_TYPE_DIRECTORY
    await world.files.Write(messages(3))
    moved = await world.files.Move(pb.MoveFileRequest(session=ref(), source="a", destination="d/a"))
    assert moved.file.path == "d/a" and moved.session.epoch == 1
    assert (await world.files.Stat(pb.StatFileRequest(session=ref(), path="d/a"))).file.size_bytes == 3
    listed = await world.files.List(pb.ListFilesRequest(session=ref(), recursive=True))
    assert [file.path for file in listed.files] == ["d", "d/a", "d/e"] and listed.session.vm_id == "vm1"
    await world.files.Remove(pb.RemoveFileRequest(session=ref(), path="d", recursive=True))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.files.Stat(pb.StatFileRequest(session=ref(), path="d"))
    assert (failure(caught).code, failure(caught).reason) == (grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND")


async def test_refusals_of_the_guest_arrive_during_an_upload(world: World) -> None:
    await world.add_guest("vm1")
    await world.files.Write(messages(1))
    for fields, code, reason in [
        ({"must_not_exist": True}, grpc.StatusCode.ALREADY_EXISTS, "FILE_EXISTS"),
        ({"sha256": bytes(32)}, grpc.StatusCode.DATA_LOSS, "CHECKSUM_MISMATCH"),
        ({"path": "no/such/directory"}, grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.files.Write(messages(5_000_000, **fields))
        assert (failure(caught).code, failure(caught).reason) == (code, reason)
    assert (await read(world, path="a"))[1] == bytes(1)


async def test_an_upload_that_breaks_off_leaves_nothing(world: World) -> None:
    guest = await world.add_guest("vm1")
    call = world.files.Write()
    await call.write(pb.WriteFileRequest(header=pb.WriteFileHeader(session=ref(), path="a")))
    await call.write(pb.WriteFileRequest(data=b"1"))
    call.cancel()
    bad = world.files.Write()
    await bad.write(pb.WriteFileRequest(header=pb.WriteFileHeader(session=ref(), path="b")))
    await bad.write(pb.WriteFileRequest(data=b"1"))
    await bad.write(pb.WriteFileRequest(data=b""))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bad
    assert (failure(caught).reason, failure(caught).field) == ("INVALID_FIELD", "data")
    listed = await world.files.List(pb.ListFilesRequest(session=ref()))
    assert not listed.files
    assert not [path for path in guest.data.iterdir() if path.name in ("a", "b")]


async def test_an_upload_that_breaks_off_does_not_look_like_a_whole_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    fates: asyncio.Queue[str] = asyncio.Queue()

    async def write(_: object, first: pb.WriteFileRequest, messages: AsyncIterator[pb.WriteFileRequest]) -> Any:
        begun.put_nowait(first.header.path)
        fate = "broken off"
        try:
            async for _ in messages:
                pass
            fate = "whole"
            return pb.WriteFileResponse()
        finally:
            fates.put_nowait(fate)

    monkeypatch.setattr("scheduler.file_stream.write", write)
    for _ in range(20):
        call = world.files.Write()
        await call.write(pb.WriteFileRequest(header=pb.WriteFileHeader(session=ref(), path="a")))
        await begun.get()
        call.cancel()
        assert await fates.get() == "broken off"


async def test_an_upload_to_a_sealed_session_goes_to_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.file_stream.MIN_COOLDOWN_SECONDS", 1e9)  # however slow this machine is
    guest = await world.add_guest("vm1")
    await world.files.MakeDir(pb.MakeDirRequest(session=ref(), path="d"))
    await seal(guest)
    world.fleet.end(world.fleet.of("vm1"), session_pb2.END_REASON_STOPPED)
    await world.add_guest("vm2")
    # It answered just now and would not be asked again: no session ends as idle that soon, but one may be stopped.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.files.Write(messages(3))
    error = failure(caught)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_LOST")
    assert (await world.files.Write(messages(3))).session.vm_id == "vm2"


async def test_an_upload_after_an_idle_expiry_goes_to_the_next_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.file_stream.MIN_COOLDOWN_SECONDS", 0.0)
    guest = await world.add_guest("vm1")
    await world.files.MakeDir(pb.MakeDirRequest(session=ref(), path="d"))
    await seal(guest)
    world.fleet.end(world.fleet.of("vm1"), session_pb2.END_REASON_IDLE)
    await world.add_guest("vm2")
    written = await world.files.Write(messages(3))
    assert (written.session.vm_id, written.session.previous.epoch) == ("vm2", 1)


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "header"),
        ([pb.WriteFileRequest(data=b"1")], "header"),
        ([pb.WriteFileRequest(header=pb.WriteFileHeader(session=ref(), path="../a"))], "header.path"),
    ],
)
async def test_a_bad_header_reaches_nobody(world: World, requests: list[pb.WriteFileRequest], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.files.Write(iter(requests))
    assert failure(caught).field == field and not world.fleet.acquires
