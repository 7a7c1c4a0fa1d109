"""`sandpool up`: killed in part and as a whole, at any moment. Nothing committed is lost and nothing is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpool import AsyncClient, AsyncSession, Client
from sandpool.errors import Unavailable
from sandpool.events import Ended, Started, Stdout

from .conftest import Installation, processes, start, stop

pytestmark = [pytest.mark.vm]
SERVICES = {
    "scheduler": "-m scheduler",
    "pool-manager": "-m pool_manager",
    "node-agent": "-m node_agent --config",
    "tunnel": "-m node_agent.tunnel",
}


@pytest.mark.parametrize("service", SERVICES)
async def test_a_killed_service_costs_no_session(installation: Installation, service: str) -> None:
    async with AsyncClient(installation.address) as client:
        session = client.session("python")
        before = await session.run("kept = 'still here'")
        os.kill(installation.pid_of(SERVICES[service]), signal.SIGKILL)
        after = None
        while after is None:
            try:
                after = await session.run("kept")
            except Unavailable:  # nothing ran
                await asyncio.sleep(0.1)
        assert (after.value, after.started.vm_id) == ("'still here'", before.started.vm_id)
        await stop_session(session)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_killed_service_loses_no_output(installation: Installation, service: str) -> None:
    async with AsyncClient(installation.address) as client:
        session = client.session("python")
        output, starts, ends = b"", 0, 0
        source = "import time\nfor n in range(100): print(n, flush=True); time.sleep(0.03)"
        async for event in session.stream(source):
            starts, ends = starts + isinstance(event, Started), ends + isinstance(event, Ended)
            if isinstance(event, Stdout):
                if not output:
                    os.kill(installation.pid_of(SERVICES[service]), signal.SIGKILL)
                output += event.data
        assert (starts, ends, output) == (1, 1, b"".join(b"%d\n" % n for n in range(100)))
        await stop_session(session)


async def stop_session(session: AsyncSession) -> None:
    """As soon as the killed service is back."""
    while True:
        try:
            await session.stop()
            return
        except Unavailable:
            await asyncio.sleep(0.1)


def test_a_second_one_says_who_runs(installation: Installation) -> None:
    arguments = ["-m", "sandpool.cli", "up", "--state-dir", str(installation.state_dir)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and f"process {installation.process.pid}" in " ".join(done.stderr.split())


def test_a_second_one_at_the_same_address_says_so_and_starts_nothing(
    installation: Installation, state_dir: Path
) -> None:
    arguments = ["-m", "sandpool.cli", "up", "--state-dir", str(state_dir), "--listen", installation.address]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1 and f"{installation.address} is taken" in said and "--listen" in said
    assert not (state_dir / "store.db").exists()


def test_sessions_are_there_after_a_restart_of_everything_but_their_end_is_told(tmp_path: Path) -> None:
    first = start("--driver", "fake")
    with Client(first.address) as client:
        assert client.session("python", "alice").run("1").started.created
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(timeout=60) == 0
    assert first.process.stdout is not None
    first.process.stdout.close()
    arguments = [sys.executable, "-m", "sandpool.cli", "up", "--state-dir", str(first.state_dir)]
    process = subprocess.Popen(
        [*arguments, "--listen", "127.0.0.1:0", "--driver", "fake"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    again = Installation(process.stdout.readline().split()[2], first.state_dir, process)
    with Client(again.address) as client:
        started = client.session("python", "alice").run("1").started
    assert (started.created, started.previous_end_reason) == (True, "NODE_SHUTDOWN")
    stop(again)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short, and removed."""
    path = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def of(state_dir: Path) -> list[str]:
    return [line for _, line in processes() if str(state_dir) in line]


def wait_until_gone(state_dir: Path) -> None:
    """The children of a killed `up` end by themselves; the test's own time limit ends this one."""
    while of(state_dir):
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.5, 2.1, 2.7, 4.0])
def test_interrupted_at_any_moment_nothing_is_left(state_dir: Path, number: signal.Signals, seconds: float) -> None:
    arguments = [
        "-m",
        "sandpool.cli",
        "up",
        "--state-dir",
        str(state_dir),
        "--listen",
        "127.0.0.1:0",
        "--driver",
        "fake",
    ]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)  # whatever it is doing now
    process.send_signal(number)
    process.wait(timeout=60)
    wait_until_gone(state_dir)
    vms = state_dir / "node" / "vms"
    assert not vms.exists() or not list(vms.iterdir())
