"""Paths that lead out, and everything that the file service refuses, on a real guest agent."""

import errno
import os
import resource
import socket
from pathlib import Path

import pytest

from guest_agent.contained import Tree
from guest_agent.file_path import BadPath, PathOutside, parse_path, show_path
from sandpool.v1 import file_pb2 as pb

from .conftest import Agent
from .files import listed, read, refused, write

OUTSIDE = ("INVALID_ARGUMENT", "PATH_OUTSIDE_DATA")


async def each_call(agent: Agent, path: str) -> set[tuple[str, str]]:
    """Status and reason of every call with this path."""
    said = set()
    calls = (
        lambda: read(agent, path),
        lambda: write(agent, path, b"1"),
        lambda: write(agent, path, b"1", make_parents=True),
        lambda: listed(agent, path),
        lambda: agent.files.Stat(pb.StatFileRequest(path=path)),
        lambda: agent.files.Remove(pb.RemoveFileRequest(path=path, recursive=True)),
        lambda: agent.files.Move(pb.MoveFileRequest(source=path, destination="there")),
        lambda: agent.files.Move(pb.MoveFileRequest(source="here", destination=path)),
        lambda: agent.files.MakeDir(pb.MakeDirRequest(path=path)),
    )
    for call in calls:
        with refused() as refusal:
            await call()
        said.add(refusal.said[:2])
    return said


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../secret", "/mnt/data/../x", "..", "/mnt", "/", "/mnt/database"]
)
async def test_no_call_leaves_the_data_directory(agent: Agent, path: str) -> None:
    secret = agent.data.parent / "secret"
    secret.write_text("secret")
    (agent.data / "here").touch()
    assert await each_call(agent, path) == {OUTSIDE}
    assert secret.read_text() == "secret"


@pytest.mark.parametrize("target", ["..", "/", "../data"])
async def test_no_call_goes_through_a_link_that_leaves(agent: Agent, target: str) -> None:
    secret = agent.data.parent / "secret"
    secret.write_text("secret")
    (agent.data / "here").touch()
    (agent.data / "out").symlink_to(target)
    assert await each_call(agent, "out/secret") == {OUTSIDE}
    assert secret.read_text() == "secret"


async def test_a_link_that_leaves_is_not_read_and_is_replaced_not_followed(agent: Agent) -> None:
    secret = agent.data.parent / "secret"
    secret.write_text("secret")
    (agent.data / "link").symlink_to(secret)
    with refused() as refusal:
        await read(agent, "link")
    assert refusal.said == (*OUTSIDE, "path")
    await write(agent, "link", b"mine")
    assert secret.read_text() == "secret" and not (agent.data / "link").is_symlink()


async def test_a_link_that_stays_is_followed(agent: Agent) -> None:
    await write(agent, "d/a", b"1", make_parents=True)
    (agent.data / "link").symlink_to("d/../d")
    assert await read(agent, "link/a") == b"1"
    await write(agent, "link/b", b"2", make_parents=True)
    assert (agent.data / "d" / "b").read_bytes() == b"2"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "x" * 256, "/".join(["y"] * 2500)])
async def test_what_is_no_path_is_refused_by_every_call(agent: Agent, path: str) -> None:
    (agent.data / "here").touch()
    assert await each_call(agent, path) == {("INVALID_ARGUMENT", "INVALID_FIELD")}


async def test_a_loop_of_links_is_refused(agent: Agent) -> None:
    (agent.data / "loop").symlink_to("loop")
    with refused() as refusal:
        await read(agent, "loop/a")
    assert refusal.said[:2] == OUTSIDE


async def test_what_is_not_there_is_not_found(agent: Agent) -> None:
    for call in (
        lambda: read(agent, "none"),
        lambda: listed(agent, "none"),
        lambda: agent.files.Stat(pb.StatFileRequest(path="none")),
        lambda: agent.files.Remove(pb.RemoveFileRequest(path="none")),
        lambda: agent.files.Move(pb.MoveFileRequest(source="none", destination="there")),
    ):
        with refused() as refusal:
            await call()
        assert refusal.said == ("NOT_FOUND", "FILE_NOT_FOUND", "")


async def test_a_directory_is_not_a_file_and_a_file_is_not_a_directory(agent: Agent) -> None:
    (agent.data / "d").mkdir()
    (agent.data / "f").touch()
    os.mkfifo(agent.data / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(agent.data / "socket"))
    for call in (
        lambda: read(agent, "d"),
        lambda: read(agent, "/mnt/data"),
        lambda: read(agent, "fifo"),
        lambda: read(agent, "socket"),
        lambda: write(agent, "d", b"1"),
        lambda: write(agent, "", b"1"),
        lambda: agent.files.Move(pb.MoveFileRequest(source="f", destination="d")),
    ):
        with refused() as refusal:
            await call()
        assert refusal.said == ("FAILED_PRECONDITION", "NOT_A_FILE", "")
    for call in (
        lambda: listed(agent, "f"),
        lambda: read(agent, "f/x"),
        lambda: write(agent, "f/x", b"1"),
        lambda: write(agent, "f/x", b"1", make_parents=True),
        lambda: agent.files.MakeDir(pb.MakeDirRequest(path="f/x")),
        lambda: agent.files.Move(pb.MoveFileRequest(source="d", destination="f")),
    ):
        with refused() as refusal:
            await call()
        assert refusal.said == ("FAILED_PRECONDITION", "NOT_A_DIRECTORY", "")
    with refused() as refusal:
        await agent.files.MakeDir(pb.MakeDirRequest(path="f"))
    assert refusal.said == ("ALREADY_EXISTS", "FILE_EXISTS", "")


async def test_illegal_fields_are_named(agent: Agent) -> None:
    (agent.data / "d").mkdir()
    for call, field in (
        (lambda: agent.files.Remove(pb.RemoveFileRequest(recursive=True)), "path"),
        (lambda: agent.files.Move(pb.MoveFileRequest(source="d", destination="d/e")), "destination"),
        (lambda: agent.files.Move(pb.MoveFileRequest(source="d", destination="/mnt/data")), "destination"),
        (lambda: agent.files.List(pb.ListFilesRequest(page_size=1001)), "page_size"),
        (lambda: agent.files.List(pb.ListFilesRequest(page_size=-1)), "page_size"),
        (lambda: agent.files.List(pb.ListFilesRequest(page_token="?")), "page_token"),
        (lambda: write(agent, "a", b"1", mode=0o10000), "header.mode"),
        (lambda: write(agent, "a", b"1", sha256=b"short"), "header.sha256"),
        (lambda: write(agent, "a", [bytes((1 << 20) + 1)]), "data"),
        (lambda: agent.files.MakeDir(pb.MakeDirRequest(path="a", mode=0o10000)), "mode"),
    ):
        with refused() as refusal:
            await call()
        assert refusal.said == ("INVALID_ARGUMENT", "INVALID_FIELD", field)


async def test_a_full_disk_is_told(agent: Agent) -> None:
    limit = 1 << 20
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    with refused() as refusal:
        await write(agent, "a", bytes(2 * limit))
    assert refusal.said == ("RESOURCE_EXHAUSTED", "DISK_FULL", "") and await listed(agent) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("/mnt/data", ()),
        ("./a//b/", (b"a", b"b")),
        ("/mnt/data/a", (b"a",)),
        ("//mnt//data//a", (b"a",)),
        ("mnt/data/a", (b"mnt", b"data", b"a")),
        ("/tmp/root/a", (b"a",)),
        ("ä", ("ä".encode(),)),
    ],
)
def test_paths_are_relative_to_the_data_directory(text: str, names: tuple[bytes, ...]) -> None:
    assert parse_path(text, b"/tmp/root") == names


def test_paths_that_are_none() -> None:
    for text, error in (("..", PathOutside), ("/tmp", PathOutside), ("\0", BadPath), ("é" * 128, BadPath)):
        with pytest.raises(error):
            parse_path(text)


def test_names_that_are_not_text_are_shown() -> None:
    assert show_path((b"a", b"\xff")) == "a/\ufffd" and show_path(()) == "."


def test_the_kernel_holds_the_line_too(tmp_path: Path) -> None:
    tree = Tree(tmp_path, None)
    try:
        with pytest.raises(OSError) as caught:
            tree.open((b"..",), os.O_PATH)
        assert caught.value.errno == errno.EXDEV
    finally:
        tree.close()
