"""What a call can fail with. Foreign errors are mapped by one table; no grpc error escapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


class SandpoolError(Exception):
    """The base of all.

    reason is stable and in UPPER_SNAKE_CASE; code is the gRPC status code's name; field is the path of a bad request
    field, or ''; retry_after_seconds is set where a later try may succeed; metadata is of the reason.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        field: str = "",
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        where = f" ({self.field})" if self.field and self.field not in self.message else ""
        return f"{self.reason}: {self.message}{where}" if self.reason else self.message


class InvalidArgument(SandpoolError):
    """A value is wrong; field names it."""


class NotFound(SandpoolError):
    """There is no such pool, session, execution or file."""


class AlreadyExists(SandpoolError):
    """The name or id is taken by something else."""


class FailedPrecondition(SandpoolError):
    """The request is right and the state is not."""


class SessionEnded(FailedPrecondition):
    """The session that this object stands for is over; nothing ran. end_reason as in EndReason, without its prefix."""

    @property
    def end_reason(self) -> str:
        """For example IDLE, STOPPED or VM_LOST; '' if it is not known (any more)."""
        return self.metadata.get("end_reason", "").removeprefix("END_REASON_")

    @property
    def epoch(self) -> int | None:
        """Of the session that ended; None if it is not known."""
        text = self.metadata.get("epoch", "")
        return int(text) if text.isdecimal() else None


class SessionLost(SandpoolError):
    """The session's VM died during the call: what was asked for may have run, in part or whole."""

    @property
    def end_reason(self) -> str:
        """As SessionEnded."""
        return self.metadata.get("end_reason", "").removeprefix("END_REASON_")


class PoolNotFound(NotFound):
    """There is no pool of that name."""


class SessionNotFound(NotFound):
    """There is no session of that name, and the call does not make one."""


class ExecutionNotFound(NotFound):
    """The session has no execution of that id (any more)."""


class FileNotFound(NotFound):
    """There is no file or directory at that path."""


class PoolExists(AlreadyExists):
    """A pool of that name has other settings."""


class ExecutionExists(AlreadyExists):
    """The id was used for another request in this session."""


class FileExists(AlreadyExists):
    """Something is at that path."""


class PoolInUse(FailedPrecondition):
    """The pool has live sessions; force ends them."""


class PoolDeleting(FailedPrecondition):
    """The pool is being deleted: no new sessions, and its name is not free yet."""


class ResourceExhausted(SandpoolError):
    """A bound is reached, or no VM became ready in time; retry_after_seconds says when to try again."""


class NoCapacity(ResourceExhausted):
    """No VM became ready in time; the message says why."""


class MaxSessions(ResourceExhausted):
    """The pool has as many sessions as it may have."""


class QueueFull(ResourceExhausted):
    """Too many wait for a VM, or for the session's language worker, already."""


class DiskFull(ResourceExhausted):
    """The session's disk is full."""


class PermissionDenied(SandpoolError):
    """Not allowed."""


class Unavailable(SandpoolError):
    """sandpool cannot be reached; nothing ran, or what may have run can be repeated."""


class DeadlineExceeded(SandpoolError):
    """The time given to the call is over. An execution goes on."""


class Unimplemented(SandpoolError):
    """This version cannot do that."""


class DataLoss(SandpoolError):
    """What arrived is not what was sent."""


class Aborted(SandpoolError):
    """Something else changed it at the same time."""


class PoolChanged(Aborted):
    """Another call changed the pool: get it, and decide anew."""


class ConnectionLost(Aborted):
    """The way to sandpool or to the VM broke during the call: what was asked for may have run. The session may live."""


class Cancelled(SandpoolError):
    """The service ended the call."""


class Internal(SandpoolError):
    """sandpool's own fault."""


# How gRPC begins to say that there was no connection, and the call was never sent.
_NEVER_SENT = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed")
_BY_CODE: Mapping[grpc.StatusCode, type[SandpoolError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.DATA_LOSS: DataLoss,
}
_BY_REASON: Mapping[str, type[SandpoolError]] = {
    "CONNECTION_LOST": ConnectionLost,
    "DISK_FULL": DiskFull,
    "EXECUTION_EXISTS": ExecutionExists,
    "EXECUTION_NOT_FOUND": ExecutionNotFound,
    "FILE_EXISTS": FileExists,
    "FILE_NOT_FOUND": FileNotFound,
    "GENERATION_CHANGED": PoolChanged,
    "LANGUAGE_QUEUE_FULL": QueueFull,
    "MAX_SESSIONS": MaxSessions,
    "NO_CAPACITY": NoCapacity,
    "POOL_CHANGED": PoolChanged,
    "POOL_DELETING": PoolDeleting,
    "POOL_EXISTS": PoolExists,
    "POOL_IN_USE": PoolInUse,
    "POOL_NOT_FOUND": PoolNotFound,
    "QUEUE_FULL": QueueFull,
    "SESSION_ENDED": SessionEnded,
    "SESSION_LOST": SessionLost,
    "SESSION_NOT_FOUND": SessionNotFound,
}


def from_grpc(error: grpc.aio.AioRpcError) -> SandpoolError:
    """The error of the table, with reason, field, retry delay and metadata of its details."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    field, delay = "", None
    status = _status(error)
    for detail in status.details if status else ():
        if detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            delay = retry.retry_delay.ToMilliseconds() / 1000
        else:
            detail.Unpack(info)  # or one of a later version: left alone
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(error.code(), Internal)
    return kind(
        error.details() or error.code().name,
        reason=info.reason or error.code().name,
        code=error.code().name,
        field=field,
        retry_after_seconds=delay,
        metadata=info.metadata,
    )


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        found: status_pb2.Status | None = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: of something between us and sandpool
        return None
    return found


def broke(error: SandpoolError) -> bool:
    """Whether the connection to sandpool broke under the call: nobody has said what became of it."""
    return isinstance(error, Unavailable) and error.reason == error.code and not error.message.startswith(_NEVER_SENT)


def lost(error: SandpoolError) -> ConnectionLost:
    """The error of a call that broke, and may not be repeated."""
    return ConnectionLost(error.message, reason="CONNECTION_LOST", code=error.code)


@contextmanager
def mapped() -> Iterator[None]:
    """Calls inside raise SandpoolError."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_grpc(error) from error
