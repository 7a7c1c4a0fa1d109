"""Files as user code may make them, and while it changes them, on a real guest agent."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from guest_agent.contained import Tree
from guest_agent.listing import list_entries
from sandpool.v1 import file_pb2 as pb

from .conftest import Agent
from .files import listed, read, refused, write

MEGABYTE = 1 << 20
# Exchanges two names as fast as it can: at any moment the path is a directory, or a link that leaves the tree.
SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
names = [os.fsencode(name) for name in sys.argv[1:]]
print("swapping", flush=True)
while True: libc.renameat2(-100, names[0], -100, names[1], 2)
"""


@pytest.fixture
def swapper(agent: Agent) -> Iterator[None]:
    """data/d is a directory and data/e a link to the outside, or the other way round."""
    (agent.data / "d").mkdir()
    (agent.data / "e").symlink_to("..")
    (agent.data / "d" / "secret").write_text("inside")
    (agent.data.parent / "secret").write_text("outside")
    arguments = [sys.executable, "-c", SWAP, str(agent.data / "d"), str(agent.data / "e")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield
        process.send_signal(signal.SIGKILL)


@pytest.mark.usefixtures("swapper")
async def test_no_call_is_led_out_by_links_that_change_under_it(agent: Agent) -> None:
    outside = {"secret": "outside", "s": None, "data": None}
    refusals = {"PATH_OUTSIDE_DATA": 0, "FILE_NOT_FOUND": 0, "NOT_A_DIRECTORY": 0}
    done = 0
    for turn in range(300):
        calls = (
            lambda: read(agent, "d/secret"),
            lambda turn=turn: write(agent, f"d/new{turn}", b"1"),
            lambda turn=turn: write(agent, f"d/sub{turn}/new", b"1", make_parents=True),
            lambda turn=turn: agent.files.MakeDir(pb.MakeDirRequest(path=f"d/made{turn}")),
            lambda turn=turn: agent.files.Move(pb.MoveFileRequest(source=f"d/new{turn}", destination=f"moved{turn}")),
            lambda turn=turn: agent.files.Remove(pb.RemoveFileRequest(path=f"d/sub{turn}", recursive=True)),
        )
        for call in calls:
            try:
                got = await call()
            except grpc.aio.AioRpcError as error:
                refusals[str(dict(error.trailing_metadata() or ())["sandpool-reason"])] += 1
            else:
                done += 1
                assert not isinstance(got, bytes) or got == b"inside"
    assert done and refusals["PATH_OUTSIDE_DATA"], "the swapping met no call"
    assert {path.name for path in agent.data.parent.iterdir()} == set(outside)
    assert (agent.data.parent / "secret").read_text() == "outside"


async def test_a_copy_keeps_mode_and_time(agent: Agent) -> None:
    header = pb.WriteFileHeader(path="a", mode=0o4751)
    header.modified_at.FromNanoseconds(1_234_567_890_123_456_789)
    written = await agent.files.Write(iter([pb.WriteFileRequest(header=header), pb.WriteFileRequest(data=b"1")]))
    assert (agent.data / "a").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert written.file.modified_at == header.modified_at and written.file.mode == 0o4751
    assert (await agent.files.Stat(pb.StatFileRequest(path="a"))).file == written.file


@pytest.mark.parametrize(("seconds", "nanos"), [(1 << 40, 0), (-(1 << 40), 0), (0, 10**9), (0, -1)])
async def test_a_time_that_is_none_is_refused(agent: Agent, seconds: int, nanos: int) -> None:
    header = pb.WriteFileHeader(path="a")
    header.modified_at.seconds, header.modified_at.nanos = seconds, nanos
    with refused() as refusal:
        await agent.files.Write(iter([pb.WriteFileRequest(header=header)]))
    assert refusal.said == ("INVALID_ARGUMENT", "INVALID_FIELD", "header.modified_at") and await listed(agent) == []


async def test_a_move_between_two_names_of_a_file_leaves_the_new_one(agent: Agent) -> None:
    await write(agent, "d/a", b"1", make_parents=True)
    (agent.data / "b").hardlink_to(agent.data / "d" / "a")
    await agent.files.Move(pb.MoveFileRequest(source="d/a", destination="b"))
    assert await listed(agent, recursive=True) == ["b", "d"] and await read(agent, "b") == b"1"


async def test_a_move_to_itself_changes_nothing(agent: Agent) -> None:
    await write(agent, "d/a", b"1", make_parents=True)
    (agent.data / "d" / "b").hardlink_to(agent.data / "d" / "a")
    (agent.data / "link").symlink_to("d")
    for destination in ("d/a", "link/a"):
        await agent.files.Move(pb.MoveFileRequest(source="d/a", destination=destination))
    assert await listed(agent, "d") == ["d/a", "d/b"]


async def test_writing_one_of_two_names_leaves_the_other_as_it_was(agent: Agent) -> None:
    await write(agent, "a", b"old")
    (agent.data / "b").hardlink_to(agent.data / "a")
    await write(agent, "a", b"new")
    assert (await read(agent, "a"), await read(agent, "b")) == (b"new", b"old")


async def test_a_file_with_a_lease_is_refused_at_once(agent: Agent) -> None:
    await write(agent, "a", b"1")
    with (agent.data / "a").open("r+b") as file:
        previous = signal.signal(signal.SIGIO, signal.SIG_IGN)  # what breaking a lease sends
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with refused() as refusal:
                await read(agent, "a")
            assert refusal.said == ("PERMISSION_DENIED", "FILE_PERMISSION", "")
        finally:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, previous)


@pytest.mark.parametrize("growing", [True, False])
async def test_a_file_that_changes_its_size_while_it_is_read(agent: Agent, growing: bool) -> None:
    whole = bytes(16 * MEGABYTE)
    await write(agent, "a", [whole[:MEGABYTE]] * 16)
    seen, last = 0, None
    async for response in agent.files.Read(pb.ReadFileRequest(path="a")):
        if response.HasField("info"):
            with (agent.data / "a").open("r+b") as file:
                file.truncate((32 if growing else 0) * MEGABYTE)
        seen += len(response.data)
        last = response
    assert last is not None and last.HasField("end")
    assert seen == len(whole) if growing else seen < len(whole)


async def test_holes_are_zeros(agent: Agent) -> None:
    with (agent.data / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert (await agent.files.Stat(pb.StatFileRequest(path="sparse"))).file.size_bytes == 1 << 40
    assert await read(agent, "sparse", offset=(1 << 40) - 5) == bytes(5)


async def test_names_that_are_no_text_are_listed_and_removed_with_their_directory(agent: Agent) -> None:
    # As deep as a path can name, then three times as long when shown.
    base = "/".join(["d" * 250] * 15)
    (agent.data / base).mkdir(parents=True)
    parent = os.open(agent.data / base, os.O_RDONLY)
    for _ in range(15):
        os.mkdir(b"\xff" * 250, dir_fd=parent)
        child = os.open(b"\xff" * 250, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    os.close(parent)
    shown = await listed(agent, base, recursive=True)
    assert shown == [f"{base}/{chr(0xFFFD) * 250}"]
    await agent.files.Remove(pb.RemoveFileRequest(path="d" * 250, recursive=True))
    assert await listed(agent) == []


def test_a_page_takes_the_memory_of_a_page_however_large_the_directory(tmp_path: Path) -> None:
    tree = Tree(tmp_path, None)
    peaks, made = [], 0
    tracemalloc.start()
    try:
        for size in (3_000, 10_000):
            for number in range(made, size):
                (tmp_path / f"{number:05}").touch()
            made = size
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            page = [entry.path for entry in list_entries(tree, (), True, b"00499", 500)]
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
            assert page == [b"%05d" % number for number in range(500, 1000)]
    finally:
        tracemalloc.stop()
        tree.close()
    assert peaks[1] < 1.2 * peaks[0]
