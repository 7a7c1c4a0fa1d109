"""A service in this process; and, where a real one matters, `sandpool up` with processes instead of VMs."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from sandpool import AsyncClient
from sandpool.v1 import execution_pb2_grpc, file_pb2_grpc
from service_kit import server

from .service import Link, Service


@dataclass
class Connected:
    """A client, the service that it talks to, and the link between."""

    client: AsyncClient
    service: Service
    link: Link


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, for sockets."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as path:
        yield Path(path)


@pytest_asyncio.fixture
async def connected(directory: Path) -> AsyncIterator[Connected]:
    """Both in this loop."""
    service, link = Service(), Link(str(directory / "far"))
    services = {
        "sandpool.v1.ExecutionService": lambda at: execution_pb2_grpc.add_ExecutionServiceServicer_to_server(
            service, at
        ),
        "sandpool.v1.FileService": lambda at: file_pb2_grpc.add_FileServiceServicer_to_server(service, at),
    }
    near = f"unix:{directory / 'near'}"
    async with server.serve([f"unix:{directory / 'far'}"], services):
        relay = await asyncio.start_unix_server(link.accept, directory / "near")
        async with AsyncClient(near) as client:
            yield Connected(client, service, link)
        service.go.set()
        link.cut()
        relay.close()
        await relay.wait_closed()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of an installation that runs guest agents as processes."""
    state = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    arguments = ["--state-dir", str(state), "--cache-dir", str(state / "cache"), "--listen", "127.0.0.1:0"]
    command = [sys.executable, "-m", "sandpool.cli", "up", *arguments, "--driver", "fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[2]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    shutil.rmtree(state)
