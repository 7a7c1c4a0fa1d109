"""What a data-plane request may say of sessions and executions. Pure: each check returns or raises InvalidArgument."""

import re

from google.protobuf import duration_pb2

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import session_pb2
from service_kit.errors import InvalidArgument

MAX_PROGRAM_BYTES = 1 << 20  # code, stdin and env together
MAX_INPUT_BYTES = 1 << 20
MAX_ENV = 256
MAX_ENV_NAME_BYTES = 256
MAX_ARGUMENTS = 1024
MAX_PATH_BYTES = 4096
MAX_OUTPUT_LIMIT = 1 << 40
MAX_PAGE = 1000
MAX_TOKEN_BYTES = 8192  # a token may hold a path
DAY_NS = 86_400 * 10**9
SECOND_NS = 10**9
MILLISECOND_NS = 10**6

_POOL = re.compile(r"[a-z][a-z0-9-]{0,62}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_|}{\[\]:\"';<>?/.,@#$%^&*()\-+=!~`]{1,128}")
_EXECUTION_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def invalid(field: str, message: str, reason: str = "INVALID_FIELD") -> InvalidArgument:
    """The error for a field, named by its path in the request."""
    return InvalidArgument(reason, f"{field}: {message}", field=field)


def check_session(ref: session_pb2.SessionRef, field: str = "session") -> None:
    """Pool, identifier and allocation of a session."""
    if not _POOL.fullmatch(ref.pool):
        raise invalid(f"{field}.pool", "must be [a-z][a-z0-9-]{0,62}")
    if not _IDENTIFIER.fullmatch(ref.identifier):
        raise invalid(f"{field}.identifier", "must be 1 to 128 of A-Z a-z 0-9 _|}{[]:\"';<>?/.,@#$%^&*()-+=!~`")
    if ref.allocation not in session_pb2.Allocation.values():
        raise invalid(f"{field}.allocation", "unknown value")


def check_execution_id(execution_id: str) -> None:
    """An id that names an execution."""
    if not _EXECUTION_ID.fullmatch(execution_id):
        raise invalid("execution_id", "must be 1 to 64 of A-Z a-z 0-9 _ . -")


def check_page(page_size: int, page_token: str) -> None:
    """Of every list."""
    if not 0 <= page_size <= MAX_PAGE:
        raise invalid("page_size", "must be 0 to 1000")
    if len(page_token) > MAX_TOKEN_BYTES:
        raise invalid("page_token", "is not from a previous response")


def check_execute(request: pb.ExecuteRequest) -> None:
    """Every field of an ExecuteRequest."""
    check_session(request.session)
    if request.execution_id:
        check_execution_id(request.execution_id)
    program = request.WhichOneof("program")
    if program is None:
        raise invalid("program", "code or command is required")
    if program == "code":
        if request.code.language not in ("", "python"):
            raise invalid("code.language", "only python is known")
    else:
        _check_command(request.command)
    _check_size(request)
    _check_env(request)
    if "\0" in request.cwd or len(request.cwd.encode()) > MAX_PATH_BYTES:
        raise invalid("cwd", "must be at most 4096 bytes, without NUL")
    if request.HasField("timeout"):
        _check_duration("timeout", request.timeout, MILLISECOND_NS, "must be 1 ms to 24 h")
    if request.HasField("unattended_timeout"):
        _check_duration("unattended_timeout", request.unattended_timeout, SECOND_NS, "must be 1 s to 24 h")
    if request.output_limit_bytes > MAX_OUTPUT_LIMIT:
        raise invalid("output_limit_bytes", "must be at most 2^40")


def _check_command(command: pb.Command) -> None:
    program = command.WhichOneof("program")
    if program is None:
        raise invalid("command.program", "argv or shell is required")
    if program == "shell":
        if "\0" in command.shell:
            raise invalid("command.shell", "must not contain NUL")
        return
    values = command.argv.values
    if not 1 <= len(values) <= MAX_ARGUMENTS:
        raise invalid("command.argv.values", "must be 1 to 1024 arguments")
    if not values[0]:
        raise invalid("command.argv.values", "the program is empty")
    if any("\0" in value for value in values):
        raise invalid("command.argv.values", "must not contain NUL")


def _check_size(request: pb.ExecuteRequest) -> None:
    """Names the field that has most of it."""
    if request.ByteSize() <= MAX_PROGRAM_BYTES:
        return  # the whole is larger than its parts
    command = request.command
    sizes = {
        "code.source": len(request.code.source.encode()),
        "command": len(command.shell.encode()) + sum(len(value.encode()) for value in command.argv.values),
        "stdin": len(request.stdin),
        "env": sum(len(name.encode()) + len(value.encode()) for name, value in request.env.items()),
    }
    if sum(sizes.values()) > MAX_PROGRAM_BYTES:
        largest = max(sizes, key=lambda field: sizes[field])
        raise invalid(largest, "program, stdin and env exceed 1 MiB together; larger inputs go by FileService.Write")


def _check_env(request: pb.ExecuteRequest) -> None:
    if len(request.env) > MAX_ENV:
        raise invalid("env", "must be at most 256 variables")
    for name, value in request.env.items():
        if len(name) > MAX_ENV_NAME_BYTES or not _ENV_NAME.fullmatch(name):
            raise invalid("env", "names must be [A-Za-z_][A-Za-z0-9_]*, at most 256 bytes")
        if "\0" in value:
            raise invalid("env", "values must not contain NUL")


def _check_duration(field: str, value: duration_pb2.Duration, least_ns: int, message: str) -> None:
    nanoseconds = value.seconds * SECOND_NS + value.nanos
    if abs(value.nanos) >= SECOND_NS or not least_ns <= nanoseconds <= DAY_NS:
        raise invalid(field, message)


def check_attach(request: pb.AttachRequest) -> None:
    """Every field of an AttachRequest; whether the position exists is known in the guest only."""
    check_session(request.session)
    check_execution_id(request.execution_id)


def check_input(request: pb.InputRequest) -> None:
    """Every field of an InputRequest."""
    check_session(request.session)
    check_execution_id(request.execution_id)
    if len(request.data) > MAX_INPUT_BYTES:
        raise invalid("data", "must be at most 1 MiB")


def check_signal(request: pb.SignalRequest) -> None:
    """Every field of a SignalRequest."""
    check_session(request.session)
    check_execution_id(request.execution_id)
    if not 1 <= request.signal <= 31:
        raise invalid("signal", "must be 1 to 31")


def check_named(request: pb.CancelRequest | pb.GetExecutionRequest) -> None:
    """Every field of a request that names an execution and says no more."""
    check_session(request.session)
    check_execution_id(request.execution_id)


def check_list(request: pb.ListExecutionsRequest) -> None:
    """Every field of a ListExecutionsRequest."""
    check_session(request.session)
    check_page(request.page_size, request.page_token)
