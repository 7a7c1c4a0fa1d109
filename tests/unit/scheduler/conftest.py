"""A scheduler on a unix socket, real guest agents behind a real tunnel, and the assignment part of a pool-manager."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.vmm import GuestAddress
from sandpool.pool.v1 import pool_pb2, pool_pb2_grpc
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc, file_pb2_grpc, session_pb2
from sandpool.v1 import pool_pb2 as public_pool_pb2
from sandpool.v1 import pool_pb2_grpc as public_pool_pb2_grpc
from scheduler.__main__ import serving
from scheduler.config import SchedulerConfig
from service_kit import capability, errors, rpc, server

KEY = Ed25519PrivateKey.generate()


@dataclass
class Vm:
    """One VM of the test, alive until end_reason is set."""

    vm_id: str
    session: tuple[str, str] | None = None
    epoch: int = 0
    end_reason: session_pb2.EndReason.ValueType = session_pb2.END_REASON_UNSPECIFIED


@dataclass
class Fleet:
    """What a pool-manager would know, and what the scheduler asked it."""

    tunnel: str = ""
    valid_seconds: float = 60.0
    expired: int = 0  # so many answers bear a permission that the tunnel's clock has ended
    vms: list[Vm] = field(default_factory=list)
    ended: dict[tuple[str, str], Vm] = field(default_factory=dict)
    acquires: list[session_pb2.SessionRef] = field(default_factory=list)
    reports: list[pool_pb2.ReportVmRequest] = field(default_factory=list)
    unheard: int = 0  # so many reports fail
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event | None = None  # if set, Acquire waits for it
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, vm_id: str) -> Vm:
        """By id."""
        return next(vm for vm in self.vms if vm.vm_id == vm_id)

    def end(self, vm: Vm, reason: session_pb2.EndReason.ValueType) -> None:
        """The VM is gone, and its session with it."""
        if not vm.end_reason:
            vm.end_reason = reason
            if vm.session:
                self.ended[vm.session] = vm


class Assignment(pool_pb2_grpc.AssignmentServiceServicer):
    """Real answers over a fleet in memory."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._epochs = iter(range(1, 1000))

    async def Acquire(self, request: pool_pb2.AcquireRequest, context: object) -> pool_pb2.AcquireResponse:  # noqa: N802
        fleet, ref = self._fleet, request.session
        fleet.acquires.append(ref)
        fleet.asked.set()
        if fleet.held is not None:
            await fleet.held.wait()
        if ref.pool != "python":
            raise errors.NotFound("POOL_NOT_FOUND", "no such pool", field="session.pool")
        key = (ref.pool, ref.identifier)
        vm = next((vm for vm in fleet.vms if vm.session == key and not vm.end_reason), None)
        if ref.HasField("expected_epoch") and (vm is None or vm.epoch != ref.expected_epoch):
            old, metadata = fleet.ended.get(key), {"epoch": str(ref.expected_epoch)}
            if old is not None:
                metadata["end_reason"] = session_pb2.EndReason.Name(old.end_reason)
            raise errors.FailedPrecondition("SESSION_ENDED", "ended", metadata=metadata)
        created = vm is None
        if vm is None:
            if ref.allocation != session_pb2.ALLOCATION_ALLOCATE:
                raise errors.NotFound("SESSION_NOT_FOUND", "no such session")
            vm = next((vm for vm in fleet.vms if not vm.session and not vm.end_reason), None)
            if vm is None:
                raise errors.ResourceExhausted("NO_CAPACITY", "no VM", retry_after_seconds=1)
            vm.session, vm.epoch = key, next(self._epochs)
        return self._answer(vm, created)

    def _answer(self, vm: Vm, created: bool) -> pool_pb2.AcquireResponse:
        assert vm.session is not None
        binding = session_pb2.SessionBinding(epoch=vm.epoch, created=created, vm_id=vm.vm_id)
        old = self._fleet.ended.get(vm.session)
        if created and old is not None:
            binding.previous.epoch, binding.previous.end_reason = old.epoch, old.end_reason
        expired, self._fleet.expired = self._fleet.expired > 0, max(0, self._fleet.expired - 1)
        token = capability.sign(KEY, vm.vm_id, time.time() + (-3600 if expired else 60))
        route = pool_pb2.Route(vm_id=vm.vm_id, tunnel_address=self._fleet.tunnel, capability=token)
        route.valid_for.FromNanoseconds(int(self._fleet.valid_seconds * 1e9))
        return pool_pb2.AcquireResponse(binding=binding, route=route)

    async def ReportVm(self, request: pool_pb2.ReportVmRequest, context: object) -> pool_pb2.ReportVmResponse:  # noqa: N802
        self._fleet.reports.append(request)
        self._fleet.reported.set()
        if self._fleet.unheard:
            self._fleet.unheard -= 1
            raise errors.Unavailable("STORE", "the store cannot write")
        vm = self._fleet.of(request.vm_id)
        if request.reason == session_pb2.END_REASON_GUEST_PROTOCOL:
            self._fleet.end(vm, request.reason)
        return pool_pb2.ReportVmResponse(ended=bool(vm.end_reason), end_reason=vm.end_reason)


class Pools(public_pool_pb2_grpc.PoolServiceServicer):
    """Enough of the public service to see that calls arrive."""

    async def Get(self, request: public_pool_pb2.GetPoolRequest, context: Any) -> public_pool_pb2.GetPoolResponse:  # noqa: N802
        assert context.time_remaining() is not None
        if request.name != "python":
            raise errors.NotFound("POOL_NOT_FOUND", "no such pool", field="name", metadata={"a": "b"})
        return public_pool_pb2.GetPoolResponse(pool=public_pool_pb2.Pool(name="python"))


class TunnelProcess:
    """The node's tunnel, which can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        (directory / "vms").mkdir()
        (directory / "keys").mkdir()
        (directory / "keys" / "a.pub").write_bytes(KEY.public_key().public_bytes_raw())

    def know(self, vm_id: str, socket: Path) -> None:
        """Where a VM's guest agent is."""
        (self._directory / "vms" / vm_id).mkdir()
        text = GuestAddress("unix", (str(socket),)).to_json()
        (self._directory / "vms" / vm_id / "guest.json").write_text(text)

    async def start(self) -> str:
        """Its address."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "node_agent.tunnel", "--vms", str(self._directory / "vms")),
            *("--keys", str(self._directory / "keys")),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().split()[2]

    async def kill(self) -> None:
        """At once, and reaped."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


class GuestProcess:
    """A guest agent run natively."""

    def __init__(self, directory: Path) -> None:
        self.socket, self.data = directory / "s", directory / "data"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Until it serves."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "guest_agent", "--unix", str(self.socket), "--data", str(self.data)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert (await self.process.stdout.readline()).startswith(b"ready guest")

    async def stop(self) -> None:
        """By signal, so that it ends its children."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            await self.process.wait()


@dataclass
class World:
    """Everything of one test."""

    directory: Path
    fleet: Fleet
    tunnel: TunnelProcess
    channel: grpc.aio.Channel
    executions: execution_pb2_grpc.ExecutionServiceAsyncStub
    files: file_pb2_grpc.FileServiceAsyncStub
    guests: dict[str, GuestProcess] = field(default_factory=dict)

    async def add_guest(self, vm_id: str) -> GuestProcess:
        """One more warm VM."""
        (self.directory / vm_id).mkdir()
        guest = self.guests[vm_id] = GuestProcess(self.directory / vm_id)
        self.tunnel.know(vm_id, guest.socket)
        await guest.start()
        self.fleet.vms.append(Vm(vm_id))
        return guest

    def shell(self, text: str, **fields: Any) -> pb.ExecuteRequest:
        """A command in the session of the test."""
        session = fields.pop("session", None) or ref()
        return pb.ExecuteRequest(session=session, command=pb.Command(shell=text), **fields)

    def code(self, source: str, **fields: Any) -> pb.ExecuteRequest:
        """A cell in the session of the test."""
        session = fields.pop("session", None) or ref()
        return pb.ExecuteRequest(session=session, code=pb.Code(source=source), **fields)


def ref(identifier: str = "user-1", **fields: Any) -> session_pb2.SessionRef:
    """A session of the test's pool."""
    return session_pb2.SessionRef(pool="python", identifier=identifier, **fields)


@pytest_asyncio.fixture
async def world(tmp_path_factory: Any) -> AsyncIterator[World]:
    """A scheduler and what is around it; no VM yet."""
    directory: Path = tmp_path_factory.mktemp("w")
    fleet = Fleet()
    tunnel = TunnelProcess(directory)
    fleet.tunnel = await tunnel.start()
    services = {
        "sandpool.pool.v1.AssignmentService": lambda it: pool_pb2_grpc.add_AssignmentServiceServicer_to_server(
            Assignment(fleet), it
        ),
        "sandpool.v1.PoolService": lambda it: public_pool_pb2_grpc.add_PoolServiceServicer_to_server(Pools(), it),
    }
    settings = SchedulerConfig(f"unix:{directory}/pm", (f"unix:{directory}/sch",))
    guests: dict[str, GuestProcess] = {}
    try:
        async with (
            server.serve([settings.pool_manager], services),
            serving(settings) as it,
            rpc.open_channel(it.addresses[0]) as channel,
        ):
            executions: execution_pb2_grpc.ExecutionServiceAsyncStub
            executions = execution_pb2_grpc.ExecutionServiceStub(channel)
            files: file_pb2_grpc.FileServiceAsyncStub = file_pb2_grpc.FileServiceStub(channel)
            yield World(directory, fleet, tunnel, channel, executions, files, guests)
    finally:
        await asyncio.gather(*(guest.stop() for guest in guests.values()))
        await tunnel.kill()


def failure(caught: Any) -> errors.SandpoolError:
    """The error in what pytest.raises(AioRpcError) caught."""
    return errors.from_rpc_error(caught.value)
