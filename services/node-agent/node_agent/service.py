"""sandpool.node.v1.NodeAgentService: checks requests and translates between protos and the agent."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from node_agent.agent import Agent
from node_agent.ledger import Amount, Ledger
from node_agent.templates import Templates
from node_agent.vm_record import VmRecord
from node_agent.vmm import CloneFailed, MachineSpec
from sandpool.node.v1 import node_pb2 as pb
from sandpool.node.v1 import node_pb2_grpc
from sandpool.v1 import node_pb2, pool_pb2
from service_kit import boot, telemetry
from service_kit.errors import Internal, InvalidArgument, Unimplemented

VM_ID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")
TEMPLATE_ID = re.compile(r"[0-9a-f]{64}")
MIB = 1 << 20
Context = Any


class NodeAgentService(node_pb2_grpc.NodeAgentServiceServicer):
    """In front of one Agent. node, and describe() later on, has everything but state and numbers."""

    def __init__(
        self,
        agent: Agent,
        templates: Templates,
        ledger: Ledger,
        node: node_pb2.Node,
        describe: Callable[[], Awaitable[node_pb2.Node]],
    ) -> None:
        self._agent, self._templates, self._ledger = agent, templates, ledger
        self.node, self._describe = node, describe
        self._agent_instance = os.urandom(8).hex()
        self._builds: dict[str, _Build] = {}

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """Snapshot, changes, heartbeats."""
        async for change in self._agent.changes.watch(self._snapshot, self._heartbeat):
            yield change

    async def BuildTemplate(  # noqa: N802
        self, request: pb.BuildTemplateRequest, context: Context
    ) -> AsyncIterator[pb.BuildTemplateResponse]:
        """Callers that want the same share one build, which goes on if they leave."""
        machine = _machine(request.resources)
        if request.source.WhichOneof("source") != "builtin":
            raise Unimplemented("UNIMPLEMENTED", "only built-in images are built so far")
        key = request.SerializeToString(deterministic=True).hex()
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = _Build(self._templates, request.source, machine)
            build.task.add_done_callback(lambda _: self._builds.pop(key, None))
        async for progress in build.progress():
            yield pb.BuildTemplateResponse(progress=progress)
        try:
            template = await build.task
        except LookupError as error:
            raise InvalidArgument("UNKNOWN_IMAGE", str(error), field="source.builtin") from error
        except (CloneFailed, OSError) as error:
            raise Internal("TEMPLATE_BUILD_FAILED", str(error)) from error
        await self._look_again()
        yield pb.BuildTemplateResponse(template=template)

    async def _look_again(self) -> None:
        """KVM is proven by booting an image: with the first image there may be better news, in a new snapshot."""
        node = await self._describe()
        if node != self.node:
            self.node = node
            self._agent.changes.close()

    async def CreateVm(self, request: pb.CreateVmRequest, context: Context) -> pb.CreateVmResponse:  # noqa: N802
        """Clone."""
        telemetry.annotate(vm_id=request.vm_id)
        record = await self._agent.create(_record(request))
        return pb.CreateVmResponse(vm=record.to_proto())

    async def DestroyVm(self, request: pb.DestroyVmRequest, context: Context) -> pb.DestroyVmResponse:  # noqa: N802
        """Destroy."""
        if not VM_ID.fullmatch(request.vm_id):
            raise InvalidArgument("INVALID_FIELD", "must be a ULID in lower case", field="vm_id")
        telemetry.annotate(vm_id=request.vm_id)
        only = request.only_if_idle_for if request.HasField("only_if_idle_for") else None
        return await self._agent.destroy(request.vm_id, only, request.reason)

    async def close(self) -> None:
        """End every build and every Watch: the agent stops."""
        builds = [build.task for build in self._builds.values()]
        for task in builds:
            task.cancel()
        await asyncio.gather(*builds, return_exceptions=True)
        self._agent.changes.close()

    def _snapshot(self) -> pb.NodeSnapshot:
        node = node_pb2.Node()
        node.CopyFrom(self.node)
        node.capacity.CopyFrom(_amount(self._ledger.capacity))
        node.reserved.CopyFrom(_amount(self._ledger.reserved))
        return pb.NodeSnapshot(
            node_id=node.node_id,
            boot_id=boot.boot_id(),
            agent_instance=self._agent_instance,
            vms=[record.to_proto() for record in self._agent.records()],
            templates=self._templates.list(),
            node=node,
        )

    def _heartbeat(self) -> pb.Heartbeat:
        return pb.Heartbeat(reserved=_amount(self._ledger.reserved))


class _Build:
    """One build and those who follow it."""

    def __init__(self, templates: Templates, source: pool_pb2.TemplateSource, machine: MachineSpec) -> None:
        self._latest = pb.BuildProgress(message="starting", fraction=0.0)
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(templates.build(source, machine, self._report))

    def _report(self, message: str, fraction: float) -> None:
        """From any thread."""
        latest = pb.BuildProgress(message=message, fraction=max(fraction, self._latest.fraction))
        self._loop.call_soon_threadsafe(self._set, latest)

    def _set(self, latest: pb.BuildProgress) -> None:
        self._latest = latest
        self._changed.set()
        self._changed = asyncio.Event()

    async def progress(self) -> AsyncIterator[pb.BuildProgress]:
        """The latest now and whenever it changes, until the task has ended."""
        yield self._latest
        while not self.task.done():
            changed = self._loop.create_task(self._changed.wait())
            await asyncio.wait([changed, self.task], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            yield self._latest


def _machine(resources: pool_pb2.Resources) -> MachineSpec:
    for field, value, low, high in (
        ("vcpus", resources.vcpus, 1, 32),
        ("memory_bytes", resources.memory_bytes, 256 * MIB, 64 << 30),
        ("disk_bytes", resources.disk_bytes, 256 * MIB, 1 << 40),
    ):
        if not low <= value <= high:
            raise InvalidArgument("INVALID_FIELD", f"must be {low} to {high}", field=f"resources.{field}")
    if resources.memory_bytes % (2 * MIB):
        raise InvalidArgument("INVALID_FIELD", "must be a multiple of 2 MiB", field="resources.memory_bytes")
    return MachineSpec(resources.vcpus, resources.memory_bytes, resources.disk_bytes)


def _record(request: pb.CreateVmRequest) -> VmRecord:
    machine = _machine(request.resources)
    if not VM_ID.fullmatch(request.vm_id):
        raise InvalidArgument("INVALID_FIELD", "must be a ULID in lower case", field="vm_id")
    if not TEMPLATE_ID.fullmatch(request.template_id):
        raise InvalidArgument("INVALID_FIELD", "must be a SHA-256 in hexadecimal", field="template_id")
    lifetime = request.max_lifetime.ToNanoseconds() / 1e9
    # The longest of a session, 30 days, and a day for the time before it is one.
    if not 1 <= lifetime <= 31 * 86_400:
        raise InvalidArgument("INVALID_FIELD", "must be 1 s to 31 days", field="max_lifetime")
    return VmRecord(
        vm_id=request.vm_id,
        template_id=request.template_id,
        vcpus=machine.vcpus,
        memory_bytes=machine.memory_bytes,
        disk_bytes=machine.disk_bytes,
        max_processes=request.resources.max_processes,
        background_is_activity=request.background_is_activity,
        max_lifetime_seconds=lifetime,
        boot_id=boot.boot_id(),
        expires_at=boot.boot_seconds() + lifetime,
        created_at=time.time(),
    )


def _amount(amount: Amount) -> node_pb2.NodeCapacity:
    return node_pb2.NodeCapacity(
        cpu_millis=amount.cpu_millis, memory_bytes=amount.memory_bytes, disk_bytes=amount.disk_bytes
    )
