"""Answers about files that break a rule."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from sandpool.upload import upload
from sandpool.v1 import file_pb2 as pb
from sandpool.v1 import session_pb2

from .attacks import SECRET
from .conftest import failure
from .files import listings, reads, single
from .stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="package")
_numbers = itertools.count()
ATTACKS = ["huge-message", "endless-headers", "endless-trailers", "reset"]
FINE = ("unknown-fields", "wrong-sha256")


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(64):
        yield bytes(1 << 18)


CALLS: dict[str, Callable[[Stack, session_pb2.SessionRef, str], Any]] = {
    "Read": lambda stack, ref, path: stack.files.Read(pb.ReadFileRequest(session=ref, path=path, length=5), timeout=30),
    "List": lambda stack, ref, path: stack.files.List(pb.ListFilesRequest(session=ref, path=path), timeout=30),
    "Stat": lambda stack, ref, path: stack.files.Stat(pb.StatFileRequest(session=ref, path=path), timeout=30),
    "MakeDir": lambda stack, ref, path: stack.files.MakeDir(pb.MakeDirRequest(session=ref, path=path), timeout=30),
    "Move": lambda stack, ref, path: stack.files.Move(
        pb.MoveFileRequest(session=ref, source="a", destination=path), timeout=30
    ),
    "Remove": lambda stack, ref, path: stack.files.Remove(pb.RemoveFileRequest(session=ref, path=path), timeout=30),
    "Write": lambda stack, ref, path: upload(stack.files, pb.WriteFileHeader(session=ref, path=path), _chunks()),
}
CASES = [
    *(("Read", name) for name in reads("a") if name not in FINE),
    *(("List", name) for name in listings("a")),
    *((method, name) for method in ("Stat", "MakeDir", "Move", "Write") for name in single(method, "a")),
    ("Write", "early-answer"),
    *((method, name) for method in CALLS for name in ATTACKS if not (method == "Write" and name == "reset")),
]


async def session(stack: Stack) -> session_pb2.SessionRef:
    """On a hostile VM, made already: reads do not make one."""
    made = session_pb2.SessionRef(pool="bad", identifier=f"file-{next(_numbers)}")
    await stack.sessions.Ensure(session_pb2.EnsureSessionRequest(session=made))
    return made


@pytest.mark.parametrize(("method", "name"), CASES)
async def test_a_broken_rule_ends_the_vm(stack: Stack, method: str, name: str) -> None:
    ref = await session(stack)
    error = await failure(CALLS[method](stack, ref, name))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_LOST")
    assert error.metadata == {"end_reason": "END_REASON_GUEST_PROTOCOL"}
    assert await stack.end_reason(ref) == "GUEST_PROTOCOL"
    await stack.sessions.Stop(session_pb2.StopSessionRequest(session=ref))


async def test_what_no_client_knows_is_dropped(stack: Stack) -> None:
    ref = await session(stack)
    messages = [one async for one in stack.files.Read(pb.ReadFileRequest(session=ref, path="unknown-fields"))]
    assert [one.WhichOneof("message") for one in messages] == ["info", "data", "end"]
    assert not any(SECRET.encode() in one.SerializeToString() for one in messages)
    await stack.sessions.Stop(session_pb2.StopSessionRequest(session=ref))
