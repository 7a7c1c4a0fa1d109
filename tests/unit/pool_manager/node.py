"""A node in this process: VMs are entries in a dictionary, and it can refuse, delay, lose and be gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc

from node_agent.watch import Changes
from sandpool.node.v1 import node_pb2 as pb
from sandpool.node.v1 import node_pb2_grpc
from sandpool.pool.v1 import pool_pb2 as registry
from sandpool.pool.v1 import pool_pb2_grpc as registry_grpc
from sandpool.v1 import node_pb2, session_pb2
from service_kit import errors, server

HUGE = 1 << 50


@dataclass
class Node(node_pb2_grpc.NodeAgentServiceServicer):
    """What it does can be changed at any time."""

    address: str
    node_id: str = "node-1"
    boot_id: str = "boot-1"
    tunnel_address: str = "127.0.0.1:1"
    memory_bytes: int = HUGE
    vms: dict[str, pb.Vm] = field(default_factory=dict)
    # What CreateVm and BuildTemplate answer instead; and what DestroyVm with only_if_idle_for says is left.
    refuse_create: errors.SandpoolError | None = None
    refuse_template: errors.SandpoolError | None = None
    remaining_seconds: float | None = None
    # If there is one, every CreateVm takes a permit.
    permits: asyncio.Semaphore | None = None
    creates: list[pb.CreateVmRequest] = field(default_factory=list)
    destroys: list[pb.DestroyVmRequest] = field(default_factory=list)
    # VMs for which DestroyVm does not answer, until there is a permit for it.
    silent: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    # A permit for every DestroyVm and every CreateVm that came.
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    builds: list[pb.BuildTemplateRequest] = field(default_factory=list)
    _changes: Changes = field(default_factory=Changes)
    _serving: AsyncExitStack | None = None

    # -- what a test does to it ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve."""
        name = "sandpool.node.v1.NodeAgentService"
        add = {name: lambda at: node_pb2_grpc.add_NodeAgentServiceServicer_to_server(self, at)}
        self._serving = AsyncExitStack()
        await self._serving.enter_async_context(server.serve([self.address], add))

    async def stop(self) -> None:
        """Be gone; the VMs live on."""
        if self._serving is not None:
            self._changes.close()
            await self._serving.aclose()
            self._serving = None

    async def register(self, channel: grpc.aio.Channel) -> None:
        """With a pool-manager."""
        request = registry.RegisterRequest(
            node_id=self.node_id, agent_address=self.address, tunnel_address=self.tunnel_address
        )
        await registry_grpc.NodeRegistryServiceStub(channel).Register(request, wait_for_ready=True)

    def lose(self, vm_id: str, reason: session_pb2.EndReason.ValueType, detail: str = "") -> None:
        """A VM is gone."""
        vm = self.vms.pop(vm_id)
        vm.state, vm.end_reason, vm.detail = pb.VM_STATE_DESTROYED, reason, detail
        self._changes.publish(vm)

    def claim(self, vm_id: str) -> None:
        """Say that a VM is here and ready, and then that it is gone."""
        self._changes.publish(pb.Vm(vm_id=vm_id, state=pb.VM_STATE_READY))
        self._changes.publish(
            pb.Vm(vm_id=vm_id, state=pb.VM_STATE_DESTROYED, end_reason=session_pb2.END_REASON_VM_LOST)
        )

    def reboot(self) -> None:
        """Every VM is gone with the host; whoever watches has to begin again."""
        self.vms, self.boot_id = {}, self.boot_id + "+"
        self._changes.close()

    # -- the service -----------------------------------------------------------------------------------------------

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        async for change in self._changes.watch(self._snapshot, pb.Heartbeat):
            yield change

    def _snapshot(self) -> pb.NodeSnapshot:
        capacity = node_pb2.NodeCapacity(cpu_millis=HUGE, memory_bytes=self.memory_bytes, disk_bytes=HUGE)
        node = node_pb2.Node(node_id=self.node_id, driver="memory", capacity=capacity)
        return pb.NodeSnapshot(node_id=self.node_id, boot_id=self.boot_id, node=node, vms=list(self.vms.values()))

    async def BuildTemplate(  # noqa: N802
        self, request: pb.BuildTemplateRequest, context: Any
    ) -> AsyncIterator[pb.BuildTemplateResponse]:
        self.builds.append(request)
        if self.refuse_template is not None:
            raise self.refuse_template
        number = [self._key(build) for build in self.builds].index(self._key(request)) + 1
        yield pb.BuildTemplateResponse(template=pb.Template(template_id=f"{number:064x}"))

    @staticmethod
    def _key(request: pb.BuildTemplateRequest) -> bytes:
        return request.SerializeToString(deterministic=True)

    async def CreateVm(self, request: pb.CreateVmRequest, context: Any) -> pb.CreateVmResponse:  # noqa: N802
        self.creates.append(request)
        self.begun.release()
        if self.permits is not None:
            await self.permits.acquire()
        if self.refuse_create is not None:
            raise self.refuse_create
        vm = pb.Vm(vm_id=request.vm_id, state=pb.VM_STATE_READY, template_id=request.template_id)
        self.vms[vm.vm_id] = vm
        self._changes.publish(vm)
        return pb.CreateVmResponse(vm=vm)

    async def DestroyVm(self, request: pb.DestroyVmRequest, context: Any) -> pb.DestroyVmResponse:  # noqa: N802
        self.destroys.append(request)
        self.asked.release()
        if request.vm_id in self.silent:
            await self.silent[request.vm_id].acquire()
        if request.HasField("only_if_idle_for") and self.remaining_seconds is not None:
            answer = pb.DestroyVmResponse(destroyed=False)
            answer.remaining.FromNanoseconds(int(self.remaining_seconds * 1e9))
            return answer
        if request.vm_id in self.vms:
            self.lose(request.vm_id, request.reason)
        return pb.DestroyVmResponse(destroyed=True)
