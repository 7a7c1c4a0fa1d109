"""One `sandpool up` with real VMs for all system tests; each test has sessions of its own."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from sandpool import AsyncClient, AsyncSession


@dataclass(frozen=True)
class Installation:
    """A running one. process is `sandpool up`; its children are under state_dir by their command lines."""

    address: str
    state_dir: Path
    process: subprocess.Popen[str]

    def pid_of(self, what: str) -> int:
        """Of the process whose command line has the state directory and this word; exactly one is expected."""
        named = {pid for pid, line in processes() if str(self.state_dir) in line and what in line}
        # A child that has not begun its own program yet has the command line of its parent.
        found = [pid for pid in named if _parent(pid) not in named]
        assert len(found) == 1, (what, found)
        return found[0]

    def vmm_pid(self, vm_id: str) -> int:
        """Of the VMM of a VM."""
        (pid,) = (pid for pid, _ in processes() if _cwd(pid).endswith(f"/{vm_id}"))
        return pid


def _parent(pid: int) -> int:
    """Itself, of one that is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return pid


def processes() -> Iterator[tuple[int, str]]:
    """Every process with its command line."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            yield int(path.name), (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def _cwd(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


def start(*arguments: str) -> Installation:
    """`sandpool up` on a directory of its own; returns when it is ready."""
    state_dir = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sandpool.cli",
            "up",
            "--state-dir",
            str(state_dir),
            "--listen",
            "127.0.0.1:0",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words[:2] == ["ready", "sandpool"], "sandpool did not start"
    return Installation(words[2], state_dir, process)


def stop(installation: Installation) -> None:
    """End it as a user would; nothing is left."""
    installation.process.send_signal(signal.SIGINT)
    status = installation.process.wait(timeout=60)
    assert installation.process.stdout is not None
    installation.process.stdout.close()
    left = [line for _, line in processes() if str(installation.state_dir) in line]
    vms = list((installation.state_dir / "node" / "vms").iterdir())
    shutil.rmtree(installation.state_dir)
    assert (status, left, vms) == (0, [], [])


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """Builds image and template if they are not in the cache."""
    running = start("--ready-target", "2")
    yield running
    stop(running)


@pytest_asyncio.fixture
async def client(installation: Installation) -> AsyncIterator[AsyncClient]:
    """Connected."""
    async with AsyncClient(installation.address) as connected:
        yield connected


@pytest_asyncio.fixture
async def session(client: AsyncClient) -> AsyncIterator[AsyncSession]:
    """A session for one test, ended afterwards."""
    made = client.session("python")
    yield made
    await client.session("python", made.identifier).stop()


async def until_warm(client: AsyncClient, count: int) -> None:
    """Wait until so many VMs are warm."""
    while (await client.pools.get("python")).counts.warm < count:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
