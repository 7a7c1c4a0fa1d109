"""A node whose VMs are entries of a table: for tests of the control plane, by the thousand and at any speed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from node_agent.watch import Changes
from sandpool.node.v1 import node_pb2 as pb
from sandpool.node.v1 import node_pb2_grpc
from sandpool.v1 import node_pb2
from service_kit import server
from service_kit.errors import NotFound, Unavailable

HUGE = 1 << 60


class MemoryNode(node_pb2_grpc.NodeAgentServiceServicer):
    """vms: what exists now. asked: how often each VM was asked for. open: while it is cleared, creations wait.

    willing: whether it destroys anything. refused: it was asked to, and did not.
    """

    def __init__(self) -> None:
        self.boot_id = "first boot"
        self.open = asyncio.Event()
        self.open.set()
        self.vms: dict[str, pb.Vm] = {}
        self.asked: Counter[str] = Counter()
        self.template = ""
        self.builds = 0
        self.willing = True
        self.refused = asyncio.Event()
        self._changes = Changes()
        self._tasks: set[asyncio.Task[Any]] = set()

    def reboot(self) -> None:
        """Nothing survives it; whoever watches has to begin again."""
        self.boot_id = "second boot"
        self.vms.clear()
        self.cut()

    def cut(self) -> None:
        """End every Watch."""
        self._changes.close()

    def appear(self, vm_id: str) -> None:
        """A VM that nobody of the living has asked for."""
        self._set(vm_id, pb.VM_STATE_READY)

    def lose(self, vm_id: str) -> None:
        """Without a word, as if it had never been asked for."""
        del self.vms[vm_id]

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """As a real one."""
        async for change in self._changes.watch(self._snapshot, pb.Heartbeat):
            yield change

    def _snapshot(self) -> pb.NodeSnapshot:
        node = node_pb2.Node(node_id="memory", driver="memory")
        node.capacity.cpu_millis = node.capacity.memory_bytes = node.capacity.disk_bytes = HUGE
        return pb.NodeSnapshot(node_id="memory", boot_id=self.boot_id, node=node, vms=self.vms.values())

    async def BuildTemplate(  # noqa: N802
        self, request: pb.BuildTemplateRequest, context: Any
    ) -> AsyncIterator[pb.BuildTemplateResponse]:
        """There at once, if it was not."""
        if not self.template:
            self.builds += 1
            self.template = "0" * 64
        yield pb.BuildTemplateResponse(template=pb.Template(template_id=self.template))

    async def CreateVm(self, request: pb.CreateVmRequest, context: Any) -> pb.CreateVmResponse:  # noqa: N802
        """Goes on if the caller leaves."""
        if request.template_id != self.template:
            raise NotFound("TEMPLATE_NOT_FOUND", "this node has no such template: build it", field="template_id")
        self.asked[request.vm_id] += 1
        self._set(request.vm_id, pb.VM_STATE_PROVISIONING)
        await asyncio.shield(self._own(self._create(request.vm_id)))
        return pb.CreateVmResponse(vm=self.vms.get(request.vm_id))

    async def _create(self, vm_id: str) -> None:
        await self.open.wait()
        if vm_id in self.vms:
            self._set(vm_id, pb.VM_STATE_READY)

    async def DestroyVm(self, request: pb.DestroyVmRequest, context: Any) -> pb.DestroyVmResponse:  # noqa: N802
        """At once, or not at all."""
        if not self.willing:
            self.refused.set()
            raise Unavailable("BUSY", "not now")
        if self.vms.pop(request.vm_id, None) is not None:
            vm = pb.Vm(vm_id=request.vm_id, state=pb.VM_STATE_DESTROYED, end_reason=request.reason)
            self._changes.publish(vm)
        return pb.DestroyVmResponse(destroyed=True)

    def _set(self, vm_id: str, state: pb.VmState.ValueType) -> None:
        self.vms[vm_id] = pb.Vm(vm_id=vm_id, state=state)
        self._changes.publish(self.vms[vm_id])

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@asynccontextmanager
async def serve(address: str) -> AsyncIterator[MemoryNode]:
    """At unix:PATH."""
    node = MemoryNode()
    name = "sandpool.node.v1.NodeAgentService"
    add = {name: lambda grpc_server: node_pb2_grpc.add_NodeAgentServiceServicer_to_server(node, grpc_server)}
    async with server.serve([address], add):
        yield node
        node.open.set()
        node.cut()
