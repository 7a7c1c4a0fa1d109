"""What of a guest's refusal reaches the client."""

from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from sandpool.v1 import session_pb2
from scheduler import guest_errors
from scheduler.session_call import SessionCall
from service_kit import errors

Code = grpc.StatusCode


def refusal(code: grpc.StatusCode, details: str = "no", **trailers: str) -> AioRpcError:
    pairs = [(f"sandpool-{key}", value) for key, value in trailers.items()]
    return AioRpcError(code, Metadata(), Metadata(*pairs), details)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [(code, reason, errors.CLASSES[code]) for code, reasons in guest_errors.ALLOWED.items() for reason in reasons],
)
def test_what_only_a_guest_can_know_passes(
    code: grpc.StatusCode, reason: str, kind: type[errors.SandpoolError]
) -> None:
    error = guest_errors.translate(refusal(code, reason=reason, field="path"))
    assert type(error) is kind and (error.reason, error.message, error.field) == (reason, "no", "path")
    assert error.metadata == {}
    assert error.retry_after_seconds == (1.0 if reason == "LANGUAGE_QUEUE_FULL" else None)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (Code.NOT_FOUND, "SESSION_NOT_FOUND"),
        (Code.NOT_FOUND, "FILE_EXISTS"),
        (Code.FAILED_PRECONDITION, "SESSION_ENDED"),
        (Code.FAILED_PRECONDITION, "SEALED"),
        (Code.RESOURCE_EXHAUSTED, ""),
        (Code.ABORTED, "SESSION_LOST"),
        (Code.UNAUTHENTICATED, "TOKEN"),
        (Code.INTERNAL, "FILE_SYSTEM"),
        (Code.UNKNOWN, ""),
        (Code.CANCELLED, ""),
        (Code.DEADLINE_EXCEEDED, ""),
    ],
)
def test_everything_else_is_internal(code: grpc.StatusCode, reason: str) -> None:
    error = guest_errors.translate(refusal(code, "secret", reason=reason))
    assert isinstance(error, errors.Internal) and error.reason == "GUEST_ERROR" and "secret" not in error.message


def test_messages_and_fields_are_bounded() -> None:
    error = guest_errors.translate(
        refusal(Code.NOT_FOUND, "a\x1b[31m\n" + "b" * 1000, reason="FILE_NOT_FOUND", field="Not A Field")
    )
    assert error.message.startswith("a?[31m?b") and len(error.message) == guest_errors.MAX_MESSAGE_CHARACTERS
    assert error.field is None


def test_a_method_that_the_guest_is_too_old_for() -> None:
    assert guest_errors.translate(refusal(Code.UNIMPLEMENTED)).code is Code.UNIMPLEMENTED


def test_sealed_is_a_code_and_a_reason() -> None:
    assert guest_errors.is_sealed(refusal(Code.FAILED_PRECONDITION, reason="SEALED"))
    assert not guest_errors.is_sealed(refusal(Code.FAILED_PRECONDITION, reason="STDIN_CLOSED"))
    assert not guest_errors.is_sealed(refusal(Code.NOT_FOUND, reason="SEALED"))


@pytest.mark.parametrize("code", Code)
def test_a_transport_that_was_broken_is_a_violation(code: grpc.StatusCode) -> None:
    broken = code in (Code.RESOURCE_EXHAUSTED, Code.INTERNAL)
    assert (guest_errors.violation(refusal(code, "secret")) is not None) == broken
    assert guest_errors.violation(refusal(code, reason="DISK_FULL")) is None


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.UNKNOWN, Code.CANCELLED, Code.NOT_FOUND])
async def test_after_the_deadline_it_is_the_deadline(code: grpc.StatusCode) -> None:
    """A guest to which the call came too late answers UNKNOWN: that is no failure of its own."""
    for left, kind in ((0.0, errors.DeadlineExceeded), (5.0, errors.Internal), (None, errors.Internal)):
        context = cast("Any", SimpleNamespace(time_remaining=lambda left=left: left))
        call = SessionCall(cast("Any", None), session_pb2.SessionRef(), context, allocates=True)
        with pytest.raises(kind):
            await call.fail(refusal(code), repeatable=True)
