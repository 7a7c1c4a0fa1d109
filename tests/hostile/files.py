"""sandpool.v1.FileService of the hostile guest: the first name of a path is what it does."""

from __future__ import annotations

import hashlib

from sandpool.v1 import file_pb2 as pb

from .attacks import ATTACKS
from .execution import UNKNOWN, refuse
from .wire import Call

DATA = b"123456"


def info(path: str, **fields: object) -> pb.FileInfo:
    """A regular file."""
    return pb.FileInfo(path=path, type=pb.FILE_TYPE_REGULAR, size_bytes=6, mode=0o644, **fields)  # type: ignore[arg-type]


def _end(data: bytes = DATA) -> pb.ReadFileResponse:
    return pb.ReadFileResponse(end=pb.ReadFileEnd(sha256=hashlib.sha256(data).digest()))


def _first(path: str, **fields: object) -> pb.ReadFileResponse:
    return pb.ReadFileResponse(info=pb.ReadFileInfo(file=info(path, **fields)))


def _data(data: bytes = DATA) -> pb.ReadFileResponse:
    return pb.ReadFileResponse(data=data)


def reads(name: str) -> dict[str, list[pb.ReadFileResponse | bytes]]:
    """By what they do; every one but the first breaks a rule."""
    return {
        "unknown-fields": [_first(name).SerializeToString() + UNKNOWN, _data(), _end().SerializeToString() + UNKNOWN],
        "more-than-asked": [_first(name), _data(), _end()],
        "wrong-sha256": [_first(name), _data(), _end(b"other")],
        "short-sha256": [_first(name), _data(), pb.ReadFileResponse(end=pb.ReadFileEnd(sha256=b"1"))],
        "other-path": [_first("other"), _data(), _end()],
        "data-first": [_data(), _end()],
        "two-infos": [_first(name), _first(name)],
        "after-end": [_first(name), _end(b""), _data()],
        "file-without-end": [_first(name), _data()],
        "large-data": [_first(name), _data(bytes(262_145))],
        "bad-time": [_bad_time(name), _end(b"")],
    }


def _bad_time(path: str) -> pb.ReadFileResponse:
    response = _first(path)
    response.info.file.modified_at.seconds = 1 << 62
    return response


def listings(name: str) -> dict[str, pb.ListFilesResponse]:
    """All break a rule."""
    inside = [info(f"{name}/{n}") for n in range(101)]
    return {
        "too-many": pb.ListFilesResponse(files=inside),
        "endless-pages": pb.ListFilesResponse(next_page_token="YQ=="),
        "long-token": pb.ListFilesResponse(files=inside[:1], next_page_token="a" * 10_000),
        "outside": pb.ListFilesResponse(files=[info("elsewhere/a")]),
        "deep": pb.ListFilesResponse(files=[info(f"{name}/a/b")]),
        "bad-mode": pb.ListFilesResponse(files=[pb.FileInfo(path=f"{name}/a", mode=1 << 20)]),
    }


def single(method: str, path: str) -> dict[str, pb.FileInfo]:
    """The file in the answers of Stat, Move, MakeDir and Write; all break a rule."""
    return {
        "other-path": info("other"),
        "long-path": info("a" * 20_000),
        "long-link": info(path, link_target="a" * 20_000),
        "bad-type": pb.FileInfo(path=path, type=17),  # type: ignore[arg-type]
    }


async def answer(call: Call, method: str) -> None:
    """One call."""
    if method == "Write":
        await _write(call)
        return
    await call.ended.wait()
    if method == "Read":
        path = pb.ReadFileRequest.FromString(call.request).path
        if path in reads(path):
            await call.headers()
            for response in reads(path)[path]:
                await call.message(response)
            await call.trailers()
            return
    elif method == "List":
        path = pb.ListFilesRequest.FromString(call.request).path
        if path in listings(path):
            await call.answer(listings(path)[path])
            return
    elif method == "Stat":
        path = pb.StatFileRequest.FromString(call.request).path
        if path in single(method, path):
            await call.answer(pb.StatFileResponse(file=single(method, path)[path]))
            return
    elif method == "MakeDir":
        path = pb.MakeDirRequest.FromString(call.request).path
        if path in single(method, path):
            await call.answer(pb.MakeDirResponse(file=single(method, path)[path]))
            return
    elif method == "Move":
        path = pb.MoveFileRequest.FromString(call.request).destination
        if path in single(method, path):
            await call.answer(pb.MoveFileResponse(file=single(method, path)[path]))
            return
    else:
        path = pb.RemoveFileRequest.FromString(call.request).path
    await ATTACKS.get(path, refuse)(call)


async def _write(call: Call) -> None:
    while not call.request:
        call.arrived.clear()
        await call.arrived.wait()
    path = pb.WriteFileRequest.FromString(call.request).header.path
    if path == "early-answer":
        await call.answer(pb.WriteFileResponse(file=info(path), sha256=bytes(32)))
    elif path in ATTACKS:
        await ATTACKS[path](call)
    else:
        await call.ended.wait()
        if path not in single("Write", path):
            await refuse(call)
        else:
            await call.answer(pb.WriteFileResponse(file=single("Write", path)[path], sha256=bytes(32)))
