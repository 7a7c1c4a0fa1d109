"""Large files and large output pass through every process in little memory (guests run natively)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandpool import AsyncClient, AsyncSession
from sandpool.events import Ended, Gap, Stdout

from .conftest import Installation, processes, start, stop

MEGABYTE = 1 << 20
SIZE = 128 * MEGABYTE
GROWTH = 32 * MEGABYTE


@pytest.fixture(scope="module")
def fake() -> Iterator[Installation]:
    """An installation whose VMs are processes."""
    running = start("--driver", "fake", "--ready-target", "1")
    yield running
    stop(running)


@contextmanager
def flat(installation: Installation) -> Iterator[None]:
    """No process of the installation, nor this one as its client, grows by more than GROWTH at any time."""
    watched = {os.getpid(): "client"}
    watched |= {pid: line for pid, line in processes() if str(installation.state_dir) in line}
    before = {}
    for pid in watched:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins at what is used now
        before[pid] = _kilobytes(pid, "VmHWM")
    yield
    grown = {line: _kilobytes(pid, "VmHWM") - before[pid] for pid, line in watched.items()}
    assert {line: size for line, size in grown.items() if size << 10 > GROWTH} == {}
    assert {"scheduler", "node_agent.tunnel", "guest_agent"} <= {line.split()[2] for line in grown if " -m " in line}


def _kilobytes(pid: int, field: str) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


async def ready(client: AsyncClient) -> AsyncSession:
    """A session that has been used in every way once."""
    session = client.session("python")
    await session.run("print('x' * 10_000_000)")
    await session.files.write("warm", bytes(MEGABYTE))
    assert await session.files.read("warm") == bytes(MEGABYTE)
    return session


async def test_a_file_goes_up_and_comes_down(fake: Installation, tmp_path: Path) -> None:
    block = os.urandom(MEGABYTE)
    with (tmp_path / "up").open("wb") as file:
        for number in range(SIZE // MEGABYTE):
            file.write(number.to_bytes(8, "big") + block[8:])
    async with AsyncClient(fake.address) as client:
        session = await ready(client)
        with flat(fake):
            await session.files.upload(tmp_path / "up", "big")
            await session.files.download("big", tmp_path / "down")
        digests = []
        for name in ("up", "down"):
            with (tmp_path / name).open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        assert digests[0] == digests[1]
        await session.stop()


async def test_a_line_of_a_hundred_megabytes_streams(fake: Installation) -> None:
    async with AsyncClient(fake.address) as client:
        session = await ready(client)
        seen, last = 0, None
        with flat(fake):
            async for event in session.stream_command(f"head -c {SIZE} /dev/zero | tr '\\0' x"):
                assert not isinstance(event, Gap)
                seen += len(event.data) if isinstance(event, Stdout) else 0
                last = event
        assert seen == SIZE and isinstance(last, Ended) and last.exit_code == 0
        await session.stop()
