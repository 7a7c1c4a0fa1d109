"""A supervisor that cannot start a service now: as on a full disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sandpool.cli.supervisor import Service, StartFailed, Supervisor


def service() -> Service:
    return Service("metrics", "service_kit.joint_pages", {"listen": ["127.0.0.1:0"], "sources": ["x=unix:/nowhere"]})


async def test_a_service_that_cannot_be_started_is_said(directory: Path) -> None:
    (directory / "metrics.toml").mkdir()  # no file can be written there, by root neither
    supervisor = Supervisor(directory, [service()], lambda _: None)
    with pytest.raises(StartFailed, match="metrics cannot be started: "):
        await supervisor.start()
    await supervisor.stop()
    supervisor.close()


async def test_a_service_that_cannot_be_started_again_is_tried_until_it_can(directory: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    child, place = service(), directory / "metrics.toml"
    supervisor = Supervisor(directory, [child], said.put_nowait)
    await supervisor.start()
    first = child.process
    assert first is not None
    place.unlink()
    place.mkdir()
    first.kill()
    async with asyncio.timeout(60):
        assert await said.get() == "metrics has ended with -9; starting it again"
        assert "Is a directory" in await said.get()
        place.rmdir()
        while await said.get() != "metrics serves again":  # one more try may have come before
            pass
        _, writer = await asyncio.open_connection(*child.address.split(":"))
    writer.close()
    await supervisor.stop()
    supervisor.close()
