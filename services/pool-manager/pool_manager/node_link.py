"""The pool-manager's side of one node: its calls, and the Watch that says what is true there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc
import structlog
from google.protobuf import duration_pb2

from pool_manager.store import NodeRow
from sandpool.node.v1 import node_pb2 as pb
from sandpool.node.v1 import node_pb2_grpc
from sandpool.v1 import node_pb2, pool_pb2, session_pb2
from service_kit import errors, rpc, telemetry

log = structlog.get_logger("node_link")

# Three heartbeats.
SILENCE_SECONDS = 3.0
RETRY_SECONDS = 0.2
CREATE_SECONDS = 120.0
DESTROY_SECONDS = 30.0
TEMPLATE_SECONDS = 1800.0
# Answers to a CreateVm after which the template may not be there any more, or not all of it.
TEMPLATE_DOUBTED = ("TEMPLATE_NOT_FOUND", "CREATE_FAILED")


class Listener(Protocol):
    """Who is told what happens on nodes."""

    async def on_snapshot(self, link: NodeLink, snapshot: pb.NodeSnapshot) -> None:
        """All that is true there now."""

    def on_vm(self, link: NodeLink, vm: pb.Vm) -> None:
        """One VM changed."""

    def on_ready(self, link: NodeLink) -> None:
        """Its snapshot is taken over: VMs may be placed there."""

    def on_unreachable(self, link: NodeLink, reason: str) -> None:
        """No heartbeat, or its Watch ended: nothing is placed there until the next snapshot."""


class NodeLink:
    """One node. Its watch task is owned by whoever calls run()."""

    def __init__(self, row: NodeRow, listener: Listener) -> None:
        self.row = row
        self._listener = listener
        self.node = node_pb2.Node(node_id=row.node_id, state=node_pb2.NODE_STATE_JOINING)
        self.last_seen_at = 0.0
        self._channel = rpc.open_channel(row.agent_address)
        self._stub: node_pb2_grpc.NodeAgentServiceAsyncStub = node_pb2_grpc.NodeAgentServiceStub(self._channel)
        self._templates: dict[bytes, asyncio.Task[str]] = {}

    @property
    def ready(self) -> bool:
        """Whether VMs may be placed and assigned there."""
        return self.node.state == node_pb2.NODE_STATE_READY

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            reason = "WATCH_ENDED"
            try:
                await self._watch()
            except TimeoutError:
                reason = "NO_HEARTBEAT"
            except errors.SandpoolError as error:
                reason = error.reason
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            except Exception:  # a fault of ours must not leave the node unwatched for ever
                reason = "INTERNAL"
                log.exception("watch_failed", node_id=self.row.node_id)
            if self.ready:
                log.warning("node_unreachable", node_id=self.row.node_id, reason=reason)
                self.node.state = node_pb2.NODE_STATE_UNREACHABLE
                self._listener.on_unreachable(self, reason)
            await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self) -> None:
        call = self._stub.Watch(pb.WatchRequest(), wait_for_ready=True)
        try:
            sequence = None
            while True:
                silence = SILENCE_SECONDS if sequence is not None else None
                async with asyncio.timeout(silence):
                    change = await call.read()
                if not isinstance(change, pb.WatchResponse):  # the end of the stream
                    return
                if sequence is not None and change.sequence != sequence + (change.WhichOneof("event") == "vm"):
                    raise errors.Internal("WATCH_GAP", "a change was lost")
                sequence = change.sequence
                await self._handle(change)
        finally:
            call.cancel()

    async def _handle(self, change: pb.WatchResponse) -> None:
        self.last_seen_at = time.time()
        kind = change.WhichOneof("event")
        if kind == "snapshot":
            self.node.CopyFrom(change.snapshot.node)
            self.node.node_id = self.row.node_id
            self._templates = {}
            await self._listener.on_snapshot(self, change.snapshot)
            self.node.state = node_pb2.NODE_STATE_READY
            self._listener.on_ready(self)
            log.info("node_ready", node_id=self.row.node_id, vms=len(change.snapshot.vms))
        elif kind == "vm":
            self._listener.on_vm(self, change.vm)
        else:
            self.node.reserved.CopyFrom(change.heartbeat.reserved)

    async def template(
        self, source: pool_pb2.TemplateSource, resources: pool_pb2.Resources, progress: Callable[[str], None]
    ) -> str:
        """The id of the template there, built if it is not. Callers share one build. Raises SandpoolError."""
        request = pb.BuildTemplateRequest(source=source, resources=resources)
        request.resources.max_processes = 0  # not a part of a template
        key = request.SerializeToString(deterministic=True)
        task = self._templates.get(key)
        if task is None or (task.done() and task.exception() is not None):
            task = self._templates[key] = asyncio.create_task(self._build(request, progress))
        with _calling():
            return await asyncio.shield(task)

    async def _build(self, request: pb.BuildTemplateRequest, progress: Callable[[str], None]) -> str:
        with _calling():
            metadata = telemetry.outgoing()
            async for answer in self._stub.BuildTemplate(request, timeout=TEMPLATE_SECONDS, metadata=metadata):
                if answer.HasField("template"):
                    return answer.template.template_id
                progress(f"{answer.progress.message} ({answer.progress.fraction:.0%})")
        raise errors.Internal("TEMPLATE_BUILD_FAILED", "the node ended the build without a template")

    async def create(self, request: pb.CreateVmRequest) -> None:
        """Returns when the VM is ready. Raises SandpoolError."""
        try:
            with _calling():
                await self._stub.CreateVm(request, timeout=CREATE_SECONDS, metadata=telemetry.outgoing())
        except errors.SandpoolError as error:
            if error.reason in TEMPLATE_DOUBTED:
                self._forget_template(request.template_id)
            raise

    def _forget_template(self, template_id: str) -> None:
        """Have it looked for, and if it is gone built, before the next VM."""
        for key, task in list(self._templates.items()):
            if task.done() and not task.cancelled() and task.exception() is None and task.result() == template_id:
                del self._templates[key]

    async def destroy(
        self, vm_id: str, reason: session_pb2.EndReason.ValueType, only_if_idle_for: duration_pb2.Duration | None = None
    ) -> pb.DestroyVmResponse:
        """At once, or only if idle for so long. Raises SandpoolError."""
        request = pb.DestroyVmRequest(vm_id=vm_id, reason=reason, only_if_idle_for=only_if_idle_for)
        with _calling():
            return await self._stub.DestroyVm(request, timeout=DESTROY_SECONDS, metadata=telemetry.outgoing())

    async def close(self) -> None:
        """Close the channel."""
        for task in self._templates.values():
            task.cancel()
        await asyncio.gather(*self._templates.values(), return_exceptions=True)
        await self._channel.close()


@contextmanager
def _calling() -> Iterator[None]:
    """What a call raises, as a SandpoolError; closing the channel looks to its callers as if they were cancelled."""
    moved = errors.Unavailable("NODE_UNREACHABLE", "the node has registered with another address")
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc_error(error) from error
    except grpc.aio.UsageError as error:  # the channel was closed before the call
        raise moved from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise moved from error
