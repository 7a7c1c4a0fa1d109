"""With which status an upload ended, over a fault of grpcio.

A write that fails because the peer has just ended the call makes grpcio's aio client overwrite the peer's status by an
INTERNAL of its own (grpc issue 36066). The status is heard first, or last, but not both: so both are kept.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
from grpc.aio import AioRpcError, Metadata

T = TypeVar("T")

_MASK = "Internal error from Core"


class UploadStatus:
    """Listens to one call from its beginning."""

    def __init__(self, call: grpc.aio.StreamUnaryCall[Any, Any]) -> None:
        self._first: AioRpcError | None = None
        call.add_done_callback(self._hear)

    def _hear(self, call: Any) -> None:
        code = _answer(call.code())
        trailers = _answer(call.trailing_metadata())
        self._first = AioRpcError(code, Metadata(), trailers, details=_answer(call.details()))

    def unmask(self, error: AioRpcError) -> AioRpcError:
        """What the peer or the transport said, if it is known; else UNAVAILABLE: it broke off."""
        if not _is_mask(error):
            return error
        if self._first is not None and not _is_mask(self._first):
            return self._first
        return AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "the upload broke off")


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
