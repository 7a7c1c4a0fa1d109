"""sandpool.v1.SessionService, and what schedulers and nodes ask: AssignmentService and NodeRegistryService."""

from __future__ import annotations

from typing import Any

from google.protobuf import duration_pb2

from pool_manager import convert
from pool_manager.acquire import Acquirer, Binding
from pool_manager.expiry import Expiry
from pool_manager.fleet import Fleet
from pool_manager.model import ASSIGNED
from pool_manager.paging import page
from pool_manager.permissions import Permissions
from pool_manager.store import NodeRow
from sandpool.pool.v1 import pool_pb2, pool_pb2_grpc
from sandpool.v1 import session_pb2 as pb
from sandpool.v1 import session_pb2_grpc
from service_kit import telemetry
from service_kit.errors import InvalidArgument, NotFound, Unavailable

Context = Any
# Longer than any session lives: never idle for so long, but a guest that is gone or silent is found out.
FOR_EVER_SECONDS = 366 * 86_400.0


class SessionService(session_pb2_grpc.SessionServiceServicer):
    """Sessions by name."""

    def __init__(self, fleet: Fleet, acquirer: Acquirer) -> None:
        self._fleet = fleet
        self._acquirer = acquirer

    async def Ensure(self, request: pb.EnsureSessionRequest, context: Context) -> pb.EnsureSessionResponse:  # noqa: N802
        """Find or make."""
        binding = await self._acquirer.acquire(request.session, context.time_remaining())
        return pb.EnsureSessionResponse(
            binding=convert.binding(binding, self._fleet.clock),
            session=convert.session(binding.session, binding.vm.row.node_id, self._fleet.clock),
        )

    async def Get(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:  # noqa: N802
        """Find."""
        vm = await self._acquirer.find(request.session)
        if vm is None or vm.session is None:
            raise NotFound("SESSION_NOT_FOUND", "there is no such session", field="session.identifier")
        return pb.GetSessionResponse(session=convert.session(vm.session, vm.row.node_id, self._fleet.clock))

    async def List(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:  # noqa: N802
        """By identifier."""
        pool = self._acquirer.pool(request.pool, "pool")
        names, token = page(pool.sessions, request.page_size, request.page_token)
        vms = [pool.sessions[name] for name in names]
        sessions = [
            convert.session(vm.session, vm.row.node_id, self._fleet.clock) for vm in vms if vm.session is not None
        ]
        return pb.ListSessionsResponse(sessions=sessions, next_page_token=token)

    async def Stop(self, request: pb.StopSessionRequest, context: Context) -> pb.StopSessionResponse:  # noqa: N802
        """End it now; idempotent."""
        vm = await self._acquirer.find(request.session)
        if vm is None:
            return pb.StopSessionResponse(stopped=False)
        await self._fleet.destroy(vm, pb.END_REASON_STOPPED)
        return pb.StopSessionResponse(stopped=True)


class AssignmentService(pool_pb2_grpc.AssignmentServiceServicer):
    """For schedulers."""

    def __init__(self, fleet: Fleet, acquirer: Acquirer, expiry: Expiry, permissions: Permissions) -> None:
        self._fleet, self._acquirer, self._expiry, self._permissions = fleet, acquirer, expiry, permissions

    async def Acquire(self, request: pool_pb2.AcquireRequest, context: Context) -> pool_pb2.AcquireResponse:  # noqa: N802
        """Which VM, and the permission to reach it."""
        with telemetry.stage("acquire"):
            binding = await self._acquirer.acquire(request.session, context.time_remaining())
        telemetry.annotate(pool=request.session.pool, vm_id=binding.session.vm_id, created=binding.created)
        with telemetry.stage("route"):
            bound = convert.binding(binding, self._fleet.clock)
            return pool_pb2.AcquireResponse(binding=bound, route=self._route(binding))

    def _route(self, binding: Binding) -> pool_pb2.Route:
        link = self._fleet.links.get(binding.vm.row.node_id)
        if link is None:
            raise Unavailable("NODE_UNREACHABLE", "the session's node is not known")
        permission = self._permissions.of(binding.vm)
        return pool_pb2.Route(
            vm_id=binding.session.vm_id,
            tunnel_address=link.row.tunnel_address,
            capability=permission.token,
            valid_for=duration_pb2.Duration(seconds=int(permission.seconds)),
        )

    async def ReportVm(self, request: pool_pb2.ReportVmRequest, context: Context) -> pool_pb2.ReportVmResponse:  # noqa: N802
        """A guest that broke the protocol is ended; one that seems lost is looked at by its node."""
        if request.reason not in (pb.END_REASON_GUEST_PROTOCOL, pb.END_REASON_VM_LOST):
            raise InvalidArgument("INVALID_FIELD", "must be GUEST_PROTOCOL or VM_LOST", field="reason")
        vm = self._fleet.vms.get(request.vm_id)
        telemetry.annotate(vm_id=request.vm_id, reported=pb.EndReason.Name(request.reason))
        if vm is None:
            return pool_pb2.ReportVmResponse(ended=True, end_reason=self._fleet.reason_of_ended(request.vm_id))
        if request.reason == pb.END_REASON_GUEST_PROTOCOL:
            self._fleet.destroy_soon(vm, request.reason)
        elif vm.state == ASSIGNED:
            left = await self._expiry.end_if_idle_for(vm, FOR_EVER_SECONDS, pb.END_REASON_VM_LOST)
            if left is not None:
                return pool_pb2.ReportVmResponse(ended=False)
        await vm.gone.wait()
        return pool_pb2.ReportVmResponse(ended=True, end_reason=vm.end_reason)


class NodeRegistryService(pool_pb2_grpc.NodeRegistryServiceServicer):
    """For node agents."""

    def __init__(self, fleet: Fleet, public_key: bytes) -> None:
        self._fleet, self._public_key = fleet, public_key

    async def Register(self, request: pool_pb2.RegisterRequest, context: Context) -> pool_pb2.RegisterResponse:  # noqa: N802
        """Make the node known."""
        for name in ("node_id", "agent_address", "tunnel_address"):
            if not 1 <= len(getattr(request, name)) <= 256:
                raise InvalidArgument("INVALID_FIELD", "must have 1 to 256 characters", field=name)
        await self._fleet.register(NodeRow(request.node_id, request.agent_address, request.tunnel_address, ""))
        response = pool_pb2.RegisterResponse(capability_public_key=self._public_key)
        response.now.GetCurrentTime()
        return response
