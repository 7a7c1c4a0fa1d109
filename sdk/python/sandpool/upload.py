"""One upload as a call, and how it really ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc.aio import AioRpcError, Metadata

from sandpool.v1 import file_pb2 as pb
from sandpool.v1 import file_pb2_grpc

T = TypeVar("T")
Call: TypeAlias = "grpc.aio.StreamUnaryCall[pb.WriteFileRequest, pb.WriteFileResponse]"
# What grpcio puts in place of the service's status when a write meets the end of the call.
_MASK = "Internal error from Core"
STATUS_TRIES, STATUS_SECONDS = 100, 0.01


async def upload(
    stub: file_pb2_grpc.FileServiceAsyncStub, header: pb.WriteFileHeader, chunks: AsyncIterator[bytes]
) -> pb.WriteFileResponse:
    """Send all of it. What chunks raises goes through, and nothing is written then. Raises AioRpcError."""
    call = stub.Write()
    status = _Status(call)
    try:
        with suppress(asyncio.InvalidStateError):  # the call has ended already: awaiting it says how
            await call.write(pb.WriteFileRequest(header=header))
            async for data in chunks:
                await call.write(pb.WriteFileRequest(data=data))
            await call.done_writing()
        response: pb.WriteFileResponse = await call
    except AioRpcError as error:
        raise await status.unmask(error) from error
    finally:
        call.cancel()
    return response


class _Status:
    """Listens to one call from its beginning.

    The service's status and the mask come in either order, and the later one stays: either the listener heard the
    first, or the call has the right one a moment later (measured: every time).
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._first: AioRpcError | None = None
        call.add_done_callback(self._hear)

    def _hear(self, call: Call) -> None:
        self._first = _status_of(call)

    async def unmask(self, error: AioRpcError) -> AioRpcError:
        """What the service or the connection said, if it is known; else UNAVAILABLE: it broke off."""
        if not _is_mask(error):
            return error
        if self._first is not None and not _is_mask(self._first):
            return self._first
        for _ in range(STATUS_TRIES):
            await asyncio.sleep(STATUS_SECONDS)
            status = _status_of(self._call)
            if not _is_mask(status):
                return status
        return AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="the upload broke off")


def _status_of(call: Call) -> AioRpcError:
    details, trailers = _answer(call.details()), _answer(call.trailing_metadata())
    return AioRpcError(_answer(call.code()), Metadata(), trailers, details=details)


def _is_mask(error: AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _MASK


def _answer(coroutine: Coroutine[Any, Any, T]) -> T:
    """Of a coroutine that has nothing to wait for, as the call has ended."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    coroutine.close()
    raise RuntimeError("a call that is done has no status")
