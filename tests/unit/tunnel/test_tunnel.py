"""The tunnel as its own process: stock grpcio through it to a real guest agent, and what it refuses."""

import asyncio
import base64
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.vmm import GuestAddress
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc
from service_kit import capability, rpc

from ..guest_agent.conftest import Agent, agent, gather

__all__ = ["agent"]
KEY = Ed25519PrivateKey.generate()


@pytest_asyncio.fixture
async def tunnel(tmp_path: Path, agent: Agent) -> AsyncIterator[str]:
    """A tunnel that knows the agent as vm1; its address."""
    (tmp_path / "vms" / "vm1").mkdir(parents=True)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a.pub").write_bytes(KEY.public_key().public_bytes_raw())
    address = GuestAddress("unix", (str(agent.data.parent / "s"),))
    (tmp_path / "vms" / "vm1" / "guest.json").write_text(address.to_json())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "node_agent.tunnel", "--vms", str(tmp_path / "vms"), "--keys", str(tmp_path / "keys")),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    yield (await process.stdout.readline()).decode().split()[2]
    process.terminate()
    assert await process.wait() == 0


async def test_a_stock_client_executes_through_the_tunnel(tunnel: str) -> None:
    token = capability.sign(KEY, "vm1", time.time() + 3600)
    async with rpc.tunnel_channel("vm1", tunnel, token) as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        request = pb.ExecuteRequest(command=pb.Command(shell="head -c 5000000 /dev/zero"))
        assert len((await gather(stub.Execute(request))).stdout) == 5_000_000


@pytest.mark.parametrize(
    ("vm_id", "token", "status"),
    [
        ("vm1", "", b"407"),
        ("vm1", capability.sign(KEY, "vm2", time.time() + 3600), b"407"),
        ("vm1", capability.sign(KEY, "vm1", time.time() - 1), b"407"),
        ("vm1", capability.sign(Ed25519PrivateKey.generate(), "vm1", time.time() + 3600), b"407"),
        ("vm2", capability.sign(KEY, "vm2", time.time() + 3600), b"404"),
        ("../vm1", capability.sign(KEY, "../vm1", time.time() + 3600), b"400"),
    ],
)
async def test_what_has_no_permission_is_refused(tunnel: str, vm_id: str, token: str, status: bytes) -> None:
    host, port = tunnel.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    basic = base64.b64encode(f"vm:{token}".encode()).decode()
    writer.write(f"CONNECT {vm_id}.vm.invalid:1 HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode())
    assert (await reader.readline()).split()[1] == status
    writer.close()


async def test_a_dead_guest_is_unavailable_at_once(tunnel: str, agent: Agent) -> None:
    token = capability.sign(KEY, "vm1", time.time() + 3600)
    async with rpc.tunnel_channel("vm1", tunnel, token) as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        call = stub.Execute(pb.ExecuteRequest(command=pb.Command(shell="echo on; sleep 60")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for event in call:
                if event.HasField("output"):
                    agent.process.terminate()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await agent.process.wait()  # to be told to end again while it does would kill it


async def test_a_tunnel_of_an_agent_that_died_before_it_wrote_that_down_ends(tmp_path: Path) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "node_agent.tunnel", "--await-record", "--vms", str(tmp_path), "--keys", str(tmp_path)),
        stdin=pipe,
        stdout=pipe,
    )
    assert process.stdin is not None and process.stdout is not None
    await process.stdout.readline()
    process.stdin.close()
    try:
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    except TimeoutError:
        process.kill()
        raise
