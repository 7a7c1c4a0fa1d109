"""A template with the guest protocol of before is served by the services of today: the protocol only grows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandpool import AsyncClient
from sandpool.cli.supervisor import Supervisor
from sandpool.cli.up import Options, services
from sandpool.errors import Unimplemented


@pytest_asyncio.fixture
async def client() -> AsyncIterator[AsyncClient]:
    """Of an installation with old templates, and a warm pool."""
    state, died = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp")), list[str]()
    (state / "run").mkdir()
    children = services(Options(state, state / "cache", "127.0.0.1:0", "fake", 1, False, False))
    for child in children:
        if child.name == "node-agent":
            child.module = "tests.compat.node_agent"
    supervisor = Supervisor(state, children, died.append)
    try:
        await supervisor.start()
        async with AsyncClient(children[-1].address) as made:
            await made.pools.create("old", ready_target=1, cooldown=1)
            await made.pools.until_ready("old")
            yield made
    finally:
        await supervisor.stop()
        supervisor.close()
        shutil.rmtree(state)
    assert died == []


async def test_an_old_guest_runs_code_keeps_state_and_ends_when_it_is_idle(client: AsyncClient) -> None:
    session = client.session("old", "alice")
    first = await session.run("x = 6\nprint('hello')", timeout=10.0, env={"A": "b"})
    assert (first.stdout, first.exit_code, first.created) == ("hello\n", 0, True)
    second = await session.run("x * 7")
    assert (second.value, second.created, second.started.vm_id) == ("42", False, first.started.vm_id)
    assert (await session.run("1 / 0")).exit_code == 1
    async for event in client.history.watch(after=0, session="alice"):
        if event.epoch == first.epoch and event.reason != "ASSIGNED":
            assert event.reason == "IDLE"
            break


async def test_what_an_old_guest_cannot_do_is_said_and_costs_nothing(client: AsyncClient) -> None:
    session = client.session("old", "bob")
    before = await session.run("y = 1")
    for newer in (session.files.stat("x"), session.write("x", b"1"), session.read("x"), session.cancel("nothing")):
        with pytest.raises(Unimplemented):
            await newer
    after = await session.run("y")
    assert (after.value, after.started.vm_id) == ("1", before.started.vm_id)
    assert await session.stop()
