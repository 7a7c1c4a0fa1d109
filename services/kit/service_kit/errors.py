"""The errors that a service answers: each is one gRPC code and one reason (google.rpc.ErrorInfo)."""

from collections.abc import Mapping
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "sandpool"


class SandpoolError(Exception):
    """What a caller is told.

    reason is UPPER_SNAKE_CASE and stable; message is for humans; field is the path of a bad request field;
    retry_after_seconds becomes RetryInfo; metadata goes into ErrorInfo.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.metadata = dict(metadata or {})


class InvalidArgument(SandpoolError):
    """A field of the request is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(SandpoolError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(SandpoolError):
    """The name or id is taken by something else."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(SandpoolError):
    """The request is right and the state is not."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(SandpoolError):
    """A bound is reached; a later try may succeed."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Aborted(SandpoolError):
    """It may have run; a blind repeat is not safe."""

    code = grpc.StatusCode.ABORTED


class Unavailable(SandpoolError):
    """A part of sandpool cannot be reached; nothing ran."""

    code = grpc.StatusCode.UNAVAILABLE


class PermissionDenied(SandpoolError):
    """The caller, or the session's user, may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class DeadlineExceeded(SandpoolError):
    """The caller's deadline passed before the answer; what was asked may have been done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class DataLoss(SandpoolError):
    """What arrived is not what was sent."""

    code = grpc.StatusCode.DATA_LOSS


class Unimplemented(SandpoolError):
    """Part of the interface, not built yet."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(SandpoolError):
    """Our fault."""

    code = grpc.StatusCode.INTERNAL


CLASSES: Mapping[grpc.StatusCode, type[SandpoolError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Aborted,
        Unavailable,
        PermissionDenied,
        DeadlineExceeded,
        DataLoss,
        Unimplemented,
        Internal,
    )
}


def to_proto(error: SandpoolError) -> status_pb2.Status:
    """The google.rpc.Status of an error, with its details."""
    details: list[any_pb2.Any] = [any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        details.append(any_pb2.Any())
        details[-1].Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_seconds * 1000))
        details.append(any_pb2.Any())
        details[-1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=details)


def to_status(error: SandpoolError) -> grpc.Status:
    """What context.abort_with_status takes."""
    return rpc_status.to_status(to_proto(error))  # type: ignore[no-any-return]


def from_rpc_error(error: grpc.aio.AioRpcError) -> SandpoolError:
    """The error that another service of sandpool answered, with reason, field and retry delay kept.

    A status without our ErrorInfo (a transport that broke) keeps its code; codes that have no class become Internal.
    """
    kind = CLASSES.get(error.code(), Internal)
    reason, field, delay, metadata = error.code().name, None, None, {}
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            delay = retry.retry_delay.ToMilliseconds() / 1000
    return kind(reason, error.details() or "", field=field, retry_after_seconds=delay, metadata=metadata)
