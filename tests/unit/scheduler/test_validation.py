"""Every field that a request may get wrong, by its path."""

from typing import Any

import pytest
from google.protobuf import duration_pb2

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import file_pb2, session_pb2
from scheduler import file_validation, validation
from service_kit.errors import InvalidArgument

SESSION = session_pb2.SessionRef(pool="python", identifier="a")
CODE, SHELL = pb.Code(source="1"), pb.Command(shell="true")


def refusal(check: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        check(request)
    assert caught.value.field is not None
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize("identifier", ["a", "A" * 128, "_|}{[]:\"';<>?/.,@#$%^&*()-+=!~`"])
def test_the_characters_of_an_identifier(identifier: str) -> None:
    validation.check_session(session_pb2.SessionRef(pool="a-0", identifier=identifier))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pool": ""}, "session.pool"),
        ({"pool": "Python"}, "session.pool"),
        ({"pool": "a" * 64}, "session.pool"),
        ({"pool": "a\n"}, "session.pool"),
        ({"identifier": ""}, "session.identifier"),
        ({"identifier": "a" * 129}, "session.identifier"),
        ({"identifier": "a b"}, "session.identifier"),
        ({"identifier": "a\n"}, "session.identifier"),
        ({"identifier": "é"}, "session.identifier"),
        ({"identifier": "\\"}, "session.identifier"),
        ({"allocation": 3}, "session.allocation"),
    ],
)
def test_a_bad_session(fields: dict[str, Any], field: str) -> None:
    ref = session_pb2.SessionRef(**({"pool": "python", "identifier": "a"} | fields))
    assert refusal(validation.check_session, ref) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    "fields",
    [
        {"code": pb.Code()},  # nothing to do is no mistake
        {"code": pb.Code(language="python", source="x" * (1 << 20))},
        {"command": pb.Command(argv=pb.Argv(values=["true"] * 1024))},
        {"code": CODE, "execution_id": "A-z_0." + "9" * 58},
        {"code": CODE, "env": {f"A{i}": "b" for i in range(256)}},
        {"code": CODE, "stdin": b"\0\xff", "cwd": "/tmp", "output_limit_bytes": 1 << 40},
        {"code": CODE, "timeout": duration_pb2.Duration(nanos=1_000_000)},
        {"code": CODE, "timeout": duration_pb2.Duration(seconds=86_400)},
        {"code": CODE, "unattended_timeout": duration_pb2.Duration(seconds=1)},
    ],
)
def test_what_may_be_executed(fields: dict[str, Any]) -> None:
    validation.check_execute(pb.ExecuteRequest(session=SESSION, **fields))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "program"),
        ({"code": CODE, "session": session_pb2.SessionRef()}, "session.pool"),
        ({"code": CODE, "execution_id": "a/b"}, "execution_id"),
        ({"code": CODE, "execution_id": "a" * 65}, "execution_id"),
        ({"code": pb.Code(language="ruby")}, "code.language"),
        ({"code": pb.Code(source="x" * ((1 << 20) + 1))}, "code.source"),
        ({"code": pb.Code(source="é" * (1 << 19)), "stdin": b"1"}, "code.source"),
        ({"code": CODE, "stdin": b"x" * (1 << 20)}, "stdin"),
        ({"code": CODE, "env": {"A": "x" * (1 << 20)}}, "env"),
        ({"command": pb.Command(shell="x" * ((1 << 20) + 1))}, "command"),
        ({"command": pb.Command()}, "command.program"),
        ({"command": pb.Command(shell="\0")}, "command.shell"),
        ({"command": pb.Command(argv=pb.Argv())}, "command.argv.values"),
        ({"command": pb.Command(argv=pb.Argv(values=[""]))}, "command.argv.values"),
        ({"command": pb.Command(argv=pb.Argv(values=["a", "\0"]))}, "command.argv.values"),
        ({"command": pb.Command(argv=pb.Argv(values=["a"] * 1025))}, "command.argv.values"),
        ({"code": CODE, "env": {f"A{i}": "b" for i in range(257)}}, "env"),
        ({"code": CODE, "env": {"1": ""}}, "env"),
        ({"code": CODE, "env": {"": ""}}, "env"),
        ({"code": CODE, "env": {"A" * 257: ""}}, "env"),
        ({"code": CODE, "env": {"A": "\0"}}, "env"),
        ({"command": SHELL, "cwd": "a\0"}, "cwd"),
        ({"command": SHELL, "cwd": "a" * 4097}, "cwd"),
        ({"code": CODE, "timeout": duration_pb2.Duration()}, "timeout"),
        ({"code": CODE, "timeout": duration_pb2.Duration(seconds=-1)}, "timeout"),
        ({"code": CODE, "timeout": duration_pb2.Duration(seconds=86_400, nanos=1)}, "timeout"),
        ({"code": CODE, "timeout": duration_pb2.Duration(seconds=1, nanos=2_000_000_000)}, "timeout"),
        ({"code": CODE, "unattended_timeout": duration_pb2.Duration(nanos=999_999_999)}, "unattended_timeout"),
        ({"code": CODE, "output_limit_bytes": (1 << 40) + 1}, "output_limit_bytes"),
    ],
)
def test_what_may_not_be_executed(fields: dict[str, Any], field: str) -> None:
    request = pb.ExecuteRequest(**({"session": SESSION} | fields))
    assert refusal(validation.check_execute, request) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    ("check", "request_", "field"),
    [
        (validation.check_attach, pb.AttachRequest(session=SESSION), "execution_id"),
        (validation.check_input, pb.InputRequest(session=SESSION, execution_id="a", data=bytes((1 << 20) + 1)), "data"),
        (validation.check_input, pb.InputRequest(session=SESSION), "execution_id"),
        (validation.check_signal, pb.SignalRequest(session=SESSION, execution_id="a"), "signal"),
        (validation.check_signal, pb.SignalRequest(session=SESSION, execution_id="a", signal=32), "signal"),
        (validation.check_named, pb.CancelRequest(session=SESSION), "execution_id"),
        (validation.check_named, pb.GetExecutionRequest(execution_id="a"), "session.pool"),
        (validation.check_list, pb.ListExecutionsRequest(session=SESSION, page_size=1001), "page_size"),
        (validation.check_list, pb.ListExecutionsRequest(session=SESSION, page_size=-1), "page_size"),
        (validation.check_list, pb.ListExecutionsRequest(session=SESSION, page_token="a" * 8193), "page_token"),
        (file_validation.check_read, file_pb2.ReadFileRequest(session=SESSION), "path"),
        (file_validation.check_read, file_pb2.ReadFileRequest(session=SESSION, path="a", offset=1 << 63), "offset"),
        (file_validation.check_read, file_pb2.ReadFileRequest(session=SESSION, path="a", length=1 << 63), "length"),
        (file_validation.check_list, file_pb2.ListFilesRequest(session=SESSION, page_size=1001), "page_size"),
        (file_validation.check_named, file_pb2.StatFileRequest(session=SESSION), "path"),
        (file_validation.check_move, file_pb2.MoveFileRequest(session=SESSION, source="a"), "destination"),
        (file_validation.check_move, file_pb2.MoveFileRequest(session=SESSION, destination="a"), "source"),
        (file_validation.check_make_dir, file_pb2.MakeDirRequest(session=SESSION, path="a", mode=0o10000), "mode"),
    ],
)
def test_other_requests(check: Any, request_: Any, field: str) -> None:
    assert refusal(check, request_) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"session": session_pb2.SessionRef()}, "header.session.pool"),
        ({"path": ""}, "header.path"),
        ({"mode": 0o10000}, "header.mode"),
        ({"sha256": b"1"}, "header.sha256"),
        ({"size_bytes": 1 << 63}, "header.size_bytes"),
    ],
)
def test_a_bad_header(header: dict[str, Any], field: str) -> None:
    request = file_pb2.WriteFileRequest(header=file_pb2.WriteFileHeader(**({"session": SESSION, "path": "a"} | header)))
    assert refusal(file_validation.check_header, request) == ("INVALID_FIELD", field)


def test_the_messages_of_a_write() -> None:
    header = file_pb2.WriteFileRequest(header=file_pb2.WriteFileHeader(session=SESSION, path="a"))
    file_validation.check_header(header)
    file_validation.check_data(file_pb2.WriteFileRequest(data=bytes(1 << 20)))
    assert refusal(file_validation.check_data, header)[1] == "data"
    assert refusal(file_validation.check_data, file_pb2.WriteFileRequest(data=bytes((1 << 20) + 1)))[1] == "data"


@pytest.mark.parametrize("path", ["a", ".", "/mnt/data", "/mnt/data/", "/mnt//./data/a", "x" * 255, "..."])
def test_a_path_below_data(path: str) -> None:
    file_validation.check_path("path", path)


@pytest.mark.parametrize(
    "path", ["..", "a/../..", "a/../b", "/", "/mnt", "/mnt/data/..", "/mnt/database", "/etc/passwd", "/mnt/../mnt/data"]
)
def test_a_path_that_leaves_data(path: str) -> None:
    assert refusal(lambda text: file_validation.check_path("path", text), path) == ("PATH_OUTSIDE_DATA", "path")


@pytest.mark.parametrize("path", ["", "a\0", "x" * 256, "a/" * 2049])
def test_a_path_that_is_none(path: str) -> None:
    assert refusal(lambda text: file_validation.check_path("path", text), path) == ("INVALID_FIELD", "path")
