"""Files go there and back whole, or not at all."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import pytest

from sandpool.errors import ConnectionLost, DataLoss, InvalidArgument, NotFound
from service_kit import errors

from .conftest import Connected

MB = bytes(range(256)) * 4096


async def test_bytes_text_and_files_arrive(connected: Connected, directory: Path) -> None:
    session, files = connected.client.session(), connected.service.files
    (directory / "local").write_bytes(MB)
    opened = io.BytesIO(MB)
    opened.seek(10)
    await session.write("bytes", MB)
    await session.write("empty", b"")
    await session.write("text", "ü")
    await session.write("path", directory / "local")
    await session.write("opened", opened)
    await session.upload(directory / "local", "uploaded")
    expected = {"bytes": MB, "empty": b"", "text": b"\xc3\xbc", "path": MB, "opened": MB[10:], "uploaded": MB}
    assert files == expected
    assert {name: await session.read(name) for name in expected} == expected


async def test_an_upload_says_size_mode_and_time(connected: Connected, directory: Path) -> None:
    local = directory / "local"
    local.write_bytes(MB)
    local.chmod(0o750)
    os.utime(local, ns=(1, 1_234_567_890_123_456_789))
    steps: list[int] = []
    await connected.client.session().files.upload(local, "x", steps.append)
    header = connected.service.requests[0].header
    assert (header.size_bytes, header.mode, header.make_parents, sum(steps)) == (len(MB), 0o750, True, len(MB))
    assert header.modified_at.ToNanoseconds() == 1_234_567_890_123_456_789
    connected.service.requests.clear()
    await connected.client.session().write("y", MB)
    assert not connected.service.requests[0].header.HasField("modified_at")


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o755), (0o077, 0o700), (0, 0o777)])
async def test_a_download_keeps_the_time_and_what_the_umask_leaves_of_the_mode(
    connected: Connected, directory: Path, umask: int, expected: int
) -> None:
    connected.service.files["x"] = MB
    connected.service.info.mode = 0o6777
    connected.service.info.modified_at.FromNanoseconds(1_234_567_890_123_456_789)
    before = os.umask(umask)
    try:
        await connected.client.session().download("x", directory / "local")
    finally:
        os.umask(before)
    status = (directory / "local").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (expected, 1_234_567_890_123_456_789)


async def test_what_is_no_regular_file_is_refused_before_it_is_opened(connected: Connected, directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    for path in (directory / "pipe", directory, Path("/dev/null")):
        with pytest.raises(OSError, match=f"not a regular file: '{path}'"):
            await connected.client.session().upload(path, "x")
    assert connected.service.requests == []


async def test_a_file_that_says_no_size_is_sent_without(connected: Connected, directory: Path) -> None:
    (directory / "empty").touch()
    for path in (Path("/proc/version"), directory / "empty"):
        await connected.client.session().upload(path, "x")
        assert connected.service.files["x"] == path.read_bytes()
        assert not connected.service.requests[0].header.HasField("size_bytes")
        connected.service.requests.clear()


async def test_a_refusal_in_mid_upload_is_that_error(connected: Connected) -> None:
    connected.service.refuse = errors.InvalidArgument("PATH_OUTSIDE_DATA", "no", field="path")
    for _ in range(50):  # grpcio loses the status in one of four, if one lets it
        with pytest.raises(InvalidArgument):
            await connected.client.session().write("../x", MB * 8)


async def test_an_upload_whose_connection_breaks_may_be_done(connected: Connected, directory: Path) -> None:
    (directory / "local").write_bytes(MB)
    with pytest.raises(ConnectionLost):
        await connected.client.session().files.upload(directory / "local", "x", lambda _: connected.link.cut())


async def test_a_source_that_fails_is_its_own_error(connected: Connected) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError("the disk is gone")
            return super().read(size)

    with pytest.raises(OSError, match="the disk is gone"):
        await connected.client.session().write("x", Failing(MB))
    assert connected.service.files == {}


async def test_a_download_is_there_when_it_is_complete(connected: Connected, directory: Path) -> None:
    connected.service.files["x"] = MB
    session, local = connected.client.session(), directory / "local"
    await session.download("x", local)
    assert local.read_bytes() == MB
    connected.service.damage = b"!"
    with pytest.raises(DataLoss):
        await session.download("x", directory / "damaged")
    with pytest.raises(NotFound):
        await session.download("nothing", directory / "nothing")
    with pytest.raises(DataLoss):
        await session.write("y", MB)
    assert {path.name for path in directory.iterdir()} == {"near", "far", "local"}


async def test_two_downloads_to_one_place_do_not_mix(connected: Connected, directory: Path) -> None:
    service, files, local = connected.service, connected.client.session().files, directory / "local"
    service.files, service.slow = {"x": MB, "y": b"other"}, "y"
    others: list[asyncio.Task[None]] = []

    def begin_another(_count: int) -> None:
        if not others:
            others.append(asyncio.create_task(files.download("y", local)))

    await files.download("x", local, begin_another)
    assert local.read_bytes() == MB
    service.go.set()
    await others[0]
    assert local.read_bytes() == b"other"
