"""Reading, writing and arranging files through a real guest agent."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpool.v1 import file_pb2 as pb

from .conftest import Agent
from .files import listed, read, refused, write

MEGABYTE = 1 << 20


def names(agent: Agent) -> list[str]:
    """What user code sees in the data directory."""
    return [path.name for path in agent.data.iterdir()]


def held(agent: Agent) -> list[str]:
    """Files of the data directory that the agent has open."""
    paths = []
    for descriptor in Path(f"/proc/{agent.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            paths.append(str(descriptor.readlink()))
    return [path for path in paths if path.startswith(f"{agent.data}/")]


async def test_what_is_written_is_read(agent: Agent) -> None:
    written = await write(agent, "/mnt/data/a.bin", b"hello", mode=0o640)
    assert written.sha256 == hashlib.sha256(b"hello").digest()
    assert (written.file.path, written.file.size_bytes, written.file.mode) == ("a.bin", 5, 0o640)
    assert await read(agent, "a.bin") == b"hello"
    assert (agent.data / "a.bin").read_bytes() == b"hello"


async def test_an_empty_file_can_be_written_and_read(agent: Agent) -> None:
    await write(agent, "empty")
    assert await read(agent, "empty") == b""


async def test_fifty_megabytes_pass_in_memory_that_does_not_grow(agent: Agent) -> None:
    def peak() -> int:
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    block = os.urandom(MEGABYTE)
    await write(agent, "warm-up", [block])
    before, digest = peak(), hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for index in range(50):
            piece = index.to_bytes(4, "big") + block[4:]
            digest.update(piece)
            yield piece

    written = await write(agent, "big", blocks(), size_bytes=50 * MEGABYTE)
    assert written.file.size_bytes == 50 * MEGABYTE and written.sha256 == digest.digest()
    assert hashlib.sha256(await read(agent, "big")).digest() == digest.digest()
    assert peak() - before < 16 * MEGABYTE


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"offset": 3}, b"3456789"),
        ({"offset": 3, "length": 4}, b"3456"),
        ({"length": 0}, b""),
        ({"offset": 8, "length": 100}, b"89"),
        ({"offset": 10}, b""),
        ({"offset": 1 << 63, "length": 5}, b""),
    ],
)
async def test_ranges(agent: Agent, fields: dict[str, int], expected: bytes) -> None:
    await write(agent, "digits", b"0123456789")
    assert await read(agent, "digits", **fields) == expected


async def test_a_file_is_replaced_in_one_step(agent: Agent) -> None:
    await write(agent, "a", b"old")
    inode = (agent.data / "a").stat().st_ino
    with (agent.data / "a").open("rb") as old:
        await write(agent, "a", b"new")
        assert old.read() == b"old"
    assert await read(agent, "a") == b"new" and (agent.data / "a").stat().st_ino != inode


async def test_parents_are_made_on_demand_only(agent: Agent) -> None:
    with refused() as refusal:
        await write(agent, "x/y/a", b"1")
    assert refusal.said == ("NOT_FOUND", "FILE_NOT_FOUND", "")
    await write(agent, "x/y/a", b"1", make_parents=True)
    assert await listed(agent, recursive=True) == ["x", "x/y", "x/y/a"]


async def test_what_must_not_exist_is_not_replaced(agent: Agent) -> None:
    await write(agent, "a", b"1", must_not_exist=True)
    with refused() as refusal:
        await write(agent, "a", b"2", must_not_exist=True)
    assert refusal.said == ("ALREADY_EXISTS", "FILE_EXISTS", "") and await read(agent, "a") == b"1"


@pytest.mark.parametrize("header", [{"sha256": b"\0" * 32}, {"size_bytes": 4}, {"size_bytes": 6}])
async def test_what_is_not_as_announced_is_not_kept(agent: Agent, header: dict[str, object]) -> None:
    with refused() as refusal:
        await write(agent, "new/a", b"12345", make_parents=True, **header)
    assert refusal.said == ("DATA_LOSS", "CHECKSUM_MISMATCH", "") and not list(agent.data.iterdir())


async def test_what_is_as_announced_is_kept(agent: Agent) -> None:
    await write(agent, "a", b"12345", sha256=hashlib.sha256(b"12345").digest(), size_bytes=5)
    assert await read(agent, "a") == b"12345"


async def test_more_than_the_disk_has_is_refused_before_the_first_byte(agent: Agent) -> None:
    with refused() as refusal:
        await write(agent, "a", size_bytes=1 << 62)
    assert refusal.said == ("RESOURCE_EXHAUSTED", "DISK_FULL", "")


async def test_an_interrupted_upload_leaves_nothing(agent: Agent) -> None:
    (agent.data / "a").write_bytes(b"old")
    call = agent.files.Write()
    await call.write(pb.WriteFileRequest(header=pb.WriteFileHeader(path="a")))
    for _ in range(8):
        await call.write(pb.WriteFileRequest(data=bytes(MEGABYTE)))  # more than the windows hold: the agent took some
    assert names(agent) == ["a"] and held(agent)
    call.cancel()
    while held(agent):
        await agent.files.Stat(pb.StatFileRequest(path="a"))
    assert await read(agent, "a") == b"old" and names(agent) == ["a"]


async def test_the_first_message_of_an_upload_is_its_header(agent: Agent) -> None:
    async def requests() -> object:
        yield pb.WriteFileRequest(data=b"1")

    with refused() as refusal:
        await agent.files.Write(requests())  # type: ignore[arg-type]
    assert refusal.said == ("INVALID_ARGUMENT", "INVALID_FIELD", "header")


async def test_stat_tells_what_is_there(agent: Agent) -> None:
    (agent.data / "link").symlink_to("target")
    os.mkfifo(agent.data / "fifo")
    os.utime(agent.data / "fifo", (1, 1_000_000_001))
    link = (await agent.files.Stat(pb.StatFileRequest(path="link"))).file
    fifo = (await agent.files.Stat(pb.StatFileRequest(path="fifo"))).file
    root = (await agent.files.Stat(pb.StatFileRequest(path="/mnt/data"))).file
    assert (link.type, link.link_target) == (pb.FILE_TYPE_SYMLINK, "target")
    assert (fifo.type, fifo.modified_at.seconds) == (pb.FILE_TYPE_OTHER, 1_000_000_001)
    assert (root.type, root.path) == (pb.FILE_TYPE_DIRECTORY, ".")


async def test_move_renames_and_replaces_unless_told_otherwise(agent: Agent) -> None:
    await write(agent, "a", b"1")
    await write(agent, "b", b"2")
    with refused() as refusal:
        await agent.files.Move(pb.MoveFileRequest(source="a", destination="b", must_not_exist=True))
    assert refusal.said == ("ALREADY_EXISTS", "FILE_EXISTS", "")
    moved = await agent.files.Move(pb.MoveFileRequest(source="a", destination="b"))
    assert moved.file.path == "b" and await read(agent, "b") == b"1" and await listed(agent) == ["b"]


async def test_remove_of_a_tree_does_not_follow_links(agent: Agent) -> None:
    await write(agent, "keep/a", b"1", make_parents=True)
    await write(agent, "tree/b/c", b"2", make_parents=True)
    (agent.data / "tree" / "link").symlink_to("../keep")
    with refused() as refusal:
        await agent.files.Remove(pb.RemoveFileRequest(path="tree"))
    assert refusal.said == ("FAILED_PRECONDITION", "DIRECTORY_NOT_EMPTY", "")
    await agent.files.Remove(pb.RemoveFileRequest(path="tree", recursive=True))
    assert await listed(agent, recursive=True) == ["keep", "keep/a"]


async def test_a_tree_deeper_than_any_path_is_removed(agent: Agent) -> None:
    source = "import os\nfor _ in range(3000): os.mkdir('deep-directory'); os.chdir('deep-directory')\nos.chdir('/')"
    assert (await agent.code(source)).error is None
    assert len(await listed(agent, recursive=True, page_size=1000)) == 4096 // len("deep-directory/")
    await agent.files.Remove(pb.RemoveFileRequest(path="deep-directory", recursive=True))
    assert await listed(agent) == []


async def test_make_dir_makes_parents_and_is_content_with_what_is_there(agent: Agent) -> None:
    made = await agent.files.MakeDir(pb.MakeDirRequest(path="a/b/c", mode=0o700))
    assert (made.file.path, made.file.mode, made.file.type) == ("a/b/c", 0o700, pb.FILE_TYPE_DIRECTORY)
    again = await agent.files.MakeDir(pb.MakeDirRequest(path="a/b/c"))
    assert again.file.mode == 0o700
    assert (await agent.files.Stat(pb.StatFileRequest(path="a"))).file.mode == 0o755


async def test_a_listing_comes_in_pages_by_path_without_loss(agent: Agent) -> None:
    directories = ["a", "a/x", "a/x/y", "a-b", "a-b/z", "a!", "b", "b/1", "b/10", "b/2", "empty", "ä"]
    for name in directories:
        (agent.data / name).mkdir(exist_ok=True)
    for number in range(30):
        (agent.data / "b" / f"file{number}").touch()
    (agent.data / os.fsdecode(b"bad\xff")).touch()
    (agent.data / "loop").symlink_to(".")
    expected = sorted(os.fsencode(path.relative_to(agent.data)) for path in agent.data.rglob("*"))
    shown = [path.decode("utf-8", "replace") for path in expected]
    for page_size in (1, 2, 7, 1000):
        assert await listed(agent, recursive=True, page_size=page_size) == shown
    assert await listed(agent, page_size=3) == [path for path in shown if "/" not in path]
    assert await listed(agent, "b", recursive=True) == [path for path in shown if path.startswith("b/")]


async def test_long_names_end_a_page_early_and_lose_nothing(agent: Agent) -> None:
    parent = agent.data.joinpath(*["d" * 250] * 10)
    parent.mkdir(parents=True)
    for number in range(300):
        (parent / f"{number:0200}").touch()
    assert len(await listed(agent, recursive=True, page_size=1000)) == 310


async def test_watch_is_not_built(agent: Agent) -> None:
    with refused() as refusal:
        async for _ in agent.files.Watch(pb.WatchFilesRequest()):
            pass
    assert refusal.said[0] == "UNIMPLEMENTED"
