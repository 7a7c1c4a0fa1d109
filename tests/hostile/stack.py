"""Every service as its own process, on a directory of its own, with its memory and its log."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import grpc
from google.protobuf import duration_pb2

from sandpool.cli.supervisor import Service, Supervisor
from sandpool.v1 import (
    execution_pb2_grpc,
    file_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from service_kit import rpc

SERVICES = ("scheduler", "pool-manager", "node-agent", "tunnel")


@dataclass
class Stack:
    """A running installation: stubs of its public API, and its processes."""

    directory: Path
    services: dict[str, Service]
    channel: grpc.aio.Channel
    executions: Any
    files: Any
    sessions: Any
    pools: Any

    @property
    def tunnel_address(self) -> str:
        """host:port."""
        return str(_tunnel(self.directory)["address"])

    def pids(self) -> dict[str, int]:
        """By service; they stay the same unless one dies."""
        pids = {name: one.process.pid for name, one in self.services.items() if one.process is not None}
        return {**pids, "tunnel": int(_tunnel(self.directory)["pid"])}

    def log(self) -> str:
        """Of every service."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.directory.rglob("*.log")))

    async def make_pool(self, name: str, image: str, **fields: Any) -> None:
        """Without warm VMs unless said otherwise."""
        spec = pool_pb2.PoolSpec(**({"ready_target": 0, "max_sessions": 1000} | fields))
        spec.template.builtin = image
        await self.pools.Create(pool_pb2.CreatePoolRequest(name=name, spec=spec))

    async def end_reason(self, ref: session_pb2.SessionRef) -> str:
        """Why the session of that name ended, as its next one is told."""
        request = session_pb2.EnsureSessionRequest(session=ref)
        binding = (await self.sessions.Ensure(request)).binding
        assert binding.created, "the session lives"
        return session_pb2.EndReason.Name(binding.previous.end_reason).removeprefix("END_REASON_")


def _tunnel(directory: Path) -> dict[str, Any]:
    import json

    record: dict[str, Any] = json.loads((directory / "node" / "tunnel.json").read_text())
    return record


def duration(seconds: float) -> duration_pb2.Duration:
    """For protos."""
    value = duration_pb2.Duration()
    value.FromNanoseconds(int(seconds * 1e9))
    return value


def resident(pid: int, name: str = "VmRSS") -> int:
    """Bytes; VmHWM: the most since the last forget_peak()."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise ProcessLookupError(pid)


class Memory:
    """The peaks of every service since it was made, over what each had then."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.pids = pids
        for pid in pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = {name: resident(pid) for name, pid in pids.items()}

    def growth(self) -> dict[str, int]:
        """Bytes by service."""
        return {name: resident(pid, "VmHWM") - self._before[name] for name, pid in self.pids.items()}


@asynccontextmanager
async def running() -> AsyncIterator[Stack]:
    """From start to the last process."""
    directory = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    (directory / "run").mkdir()
    pool_manager, node_agent = f"unix:{directory}/run/pool-manager.sock", f"unix:{directory}/run/node-agent.sock"
    store, key = str(directory / "store.db"), str(directory / "capability.key")
    node = {"state_dir": str(directory / "node"), "cache_dir": str(directory / "cache"), "pool_manager": pool_manager}
    services = [
        Service("pool-manager", "pool_manager", {"listen": [pool_manager], "store": store, "key": key}),
        Service(
            "node-agent",
            "tests.hostile.node_agent",
            {"listen": [node_agent], "destroy_on_exit": True, "cpu_overcommit": 1000.0, "memory_bytes": 1 << 42}
            | {"disk_bytes": 1 << 42, **node},  # type: ignore[dict-item]
            sweep=True,
        ),
        Service("scheduler", "scheduler", {"listen": ["127.0.0.1:0"], "pool_manager": pool_manager}),
    ]
    died: list[str] = []
    supervisor = Supervisor(directory, services, died.append)
    try:
        await supervisor.start()
        async with rpc.open_channel(services[-1].address) as channel:
            yield Stack(
                directory,
                {one.name: one for one in services},
                channel,
                execution_pb2_grpc.ExecutionServiceStub(channel),
                file_pb2_grpc.FileServiceStub(channel),
                session_pb2_grpc.SessionServiceStub(channel),
                pool_pb2_grpc.PoolServiceStub(channel),
            )
    finally:
        await supervisor.stop()
        supervisor.close()
        rmtree(directory)
    assert died == []
