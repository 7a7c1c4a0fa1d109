"""Which refusals of a guest reach a client, and as what. Pure: guest trailers themselves never pass."""

from __future__ import annotations

import re

import grpc

from scheduler.guest_check import GuestProtocolError
from service_kit import errors

REASON_KEY = "sandpool-reason"
FIELD_KEY = "sandpool-field"
SEALED = "SEALED"
MAX_MESSAGE_CHARACTERS = 512

# Everything that is not here is INTERNAL: a guest may refuse what only it can know, and nothing else.
ALLOWED: dict[grpc.StatusCode, frozenset[str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: frozenset(
        {"INVALID_FIELD", "PATH_OUTSIDE_DATA", "BAD_POSITION", "BAD_SIGNAL", "BAD_EXECUTION_ID", "NO_PROGRAM"}
        | {"TOO_LARGE", "UNKNOWN_LANGUAGE"}
    ),
    grpc.StatusCode.NOT_FOUND: frozenset({"EXECUTION_NOT_FOUND", "FILE_NOT_FOUND"}),
    grpc.StatusCode.ALREADY_EXISTS: frozenset({"EXECUTION_EXISTS", "FILE_EXISTS"}),
    grpc.StatusCode.FAILED_PRECONDITION: frozenset(
        {"EXECUTION_ENDED", "STDIN_CLOSED", "NOT_A_FILE", "NOT_A_DIRECTORY", "DIRECTORY_NOT_EMPTY"}
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: frozenset({"LANGUAGE_QUEUE_FULL", "TOO_MANY_COMMANDS", "DISK_FULL"}),
    grpc.StatusCode.PERMISSION_DENIED: frozenset({"FILE_PERMISSION"}),
    grpc.StatusCode.DATA_LOSS: frozenset({"CHECKSUM_MISMATCH"}),
    grpc.StatusCode.UNIMPLEMENTED: frozenset({"UNIMPLEMENTED"}),
}
# Until the next try, of what a busy session has room for again by itself.
RETRY_SECONDS = {"LANGUAGE_QUEUE_FULL": 1.0}
_FIELD = re.compile(r"[a-z][a-z0-9_.]{0,63}")


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """What the guest gave as reason, or "" if it gave none. Not to be passed on before it was looked up."""
    return _trailer(error, REASON_KEY)


def is_sealed(error: grpc.aio.AioRpcError) -> bool:
    """The guest let nothing in."""
    return error.code() is grpc.StatusCode.FAILED_PRECONDITION and reason_of(error) == SEALED


def violation(error: grpc.aio.AioRpcError) -> GuestProtocolError | None:
    """Which rule of the transport the guest broke, if it did.

    With these codes, and without a reason, gRPC itself ends a call whose guest broke HTTP/2, gRPC or the bounds of the
    channel. Our guest agent gives a reason with either.
    """
    if reason_of(error):
        return None
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return GuestProtocolError("a message, headers or trailers that are too large")
    if error.code() is grpc.StatusCode.INTERNAL:
        return GuestProtocolError("bytes that are not gRPC")
    return None


def translate(error: grpc.aio.AioRpcError) -> errors.SandpoolError:
    """What the client is told of a guest's refusal."""
    code, reason = error.code(), reason_of(error)
    if code is grpc.StatusCode.UNIMPLEMENTED and not reason:
        reason = "UNIMPLEMENTED"  # the guest agent is older than the method
    if reason not in ALLOWED.get(code, ()):
        return errors.Internal("GUEST_ERROR", f"the guest agent failed ({code.name})")
    field = _trailer(error, FIELD_KEY)
    return errors.CLASSES[code](
        reason,
        _printable(error.details() or ""),
        field=field if _FIELD.fullmatch(field) else None,
        retry_after_seconds=RETRY_SECONDS.get(reason),
    )


def _trailer(error: grpc.aio.AioRpcError, key: str) -> str:
    for name, value in error.trailing_metadata() or ():
        if name == key and isinstance(value, str):
            return value
    return ""


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_MESSAGE_CHARACTERS])
