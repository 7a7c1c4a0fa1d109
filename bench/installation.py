"""`sandpool up` for a benchmark, and calls beside its scheduler: with a key of our own at its tunnel."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sandpool.node.v1 import node_pb2, node_pb2_grpc
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc
from service_kit import capability, rpc

HOUR = 3600


@dataclass(frozen=True)
class Installation:
    """A running one, and its parts."""

    address: str
    state_dir: Path
    key: Ed25519PrivateKey

    @property
    def vms(self) -> Path:
        """A directory per VM."""
        return self.state_dir / "node" / "vms"

    @property
    def tunnel_address(self) -> str:
        """Of its node."""
        return str(json.loads((self.state_dir / "node" / "tunnel.json").read_text())["address"])

    def tunnel(self, vm_id: str, tunnel_address: str) -> grpc.aio.Channel:
        """To a guest agent without the scheduler."""
        token = capability.sign(self.key, vm_id, time.time() + HOUR)
        return rpc.tunnel_channel(vm_id, tunnel_address, token)

    @asynccontextmanager
    async def node_agent(self) -> AsyncIterator[node_pb2_grpc.NodeAgentServiceAsyncStub]:
        """Its NodeAgentService."""
        async with rpc.open_channel(f"unix:{self.state_dir}/run/node-agent.sock") as channel:
            yield node_pb2_grpc.NodeAgentServiceStub(channel)

    async def snapshot(self) -> node_pb2.NodeSnapshot:
        """What the node has now."""
        async with self.node_agent() as stub:
            async for change in stub.Watch(node_pb2.WatchRequest()):
                return change.snapshot
        raise RuntimeError("no snapshot")


@asynccontextmanager
async def installation(driver: str, ready_target: int) -> AsyncIterator[Installation]:
    """Up until the block ends; nothing is left."""
    state = Path(tempfile.mkdtemp(prefix="sandpool-bench-", dir="/tmp"))
    arguments = ["--state-dir", str(state), "--listen", "127.0.0.1:0", "--driver", driver]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sandpool.cli", "up", *arguments, "--ready-target", str(ready_target)),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        words = (await process.stdout.readline()).decode().split()
        if words[:2] != ["ready", "sandpool"]:
            raise RuntimeError("sandpool did not start")
        key = Ed25519PrivateKey.generate()
        (state / "node" / "keys" / "bench.pub").write_bytes(key.public_key().public_bytes_raw())
        yield Installation(words[2], state, key)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()
        shutil.rmtree(state, ignore_errors=True)


@asynccontextmanager
async def lone_node(driver: str) -> AsyncIterator[node_pb2_grpc.NodeAgentServiceAsyncStub]:
    """A node agent that no pool-manager knows: whoever creates a VM there, nobody destroys it as not his."""
    state = Path(tempfile.mkdtemp(prefix="sandpool-bench-", dir="/tmp"))
    settings = {
        "listen": [f"unix:{state}/agent"],
        "state_dir": f"{state}/node",
        "cache_dir": str(Path.home() / ".cache" / "sandpool"),
        "pool_manager": f"unix:{state}/nobody",
        "driver": driver,
        "destroy_on_exit": True,
        "cpu_overcommit": 100,
        "memory_bytes": 1 << 40,  # clones take a fraction of what is lent to them
    }
    (state / "toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "node_agent", "--config", str(state / "toml")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        async with rpc.open_channel(f"unix:{state}/agent") as channel:
            yield node_pb2_grpc.NodeAgentServiceStub(channel)
    finally:
        process.terminate()
        await process.wait()
        shutil.rmtree(state, ignore_errors=True)


async def execute(channel: grpc.aio.Channel, request: pb.ExecuteRequest) -> tuple[float, pb.ExecutionEnded]:
    """Seconds to the end of the stream, and how it ended."""
    begun, ended = time.perf_counter(), None
    async for event in execution_pb2_grpc.ExecutionServiceStub(channel).Execute(request):
        if event.HasField("ended"):
            ended = event.ended
    if ended is None:
        raise RuntimeError("no terminal event")
    return time.perf_counter() - begun, ended


def code(source: str) -> pb.ExecuteRequest:
    """Python."""
    return pb.ExecuteRequest(code=pb.Code(source=source))
