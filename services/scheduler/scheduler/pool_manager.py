"""The scheduler's client of the pool-manager: which VM serves a session, and what became of one."""

from __future__ import annotations

import grpc

from sandpool.pool.v1 import pool_pb2, pool_pb2_grpc
from sandpool.v1 import session_pb2
from service_kit import errors, telemetry

# The pool-manager asks the VM's node, which gives a silent guest 10 s.
REPORT_SECONDS = 20.0
# How gRPC begins to say that there was no connection, and the call was never sent.
NEVER_SENT = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed")


class PoolManager:
    """AssignmentService over one channel. Raises SandpoolError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        stub: pool_pb2_grpc.AssignmentServiceAsyncStub = pool_pb2_grpc.AssignmentServiceStub(channel)
        self._stub = stub

    async def acquire(self, session: session_pb2.SessionRef, timeout_seconds: float | None) -> pool_pb2.AcquireResponse:
        """Find or make the session."""
        request = pool_pb2.AcquireRequest(session=session)
        try:
            return await self._stub.Acquire(request, timeout=timeout_seconds, metadata=telemetry.outgoing())
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error

    async def report(
        self, vm_id: str, reason: session_pb2.EndReason.ValueType, detail: str
    ) -> pool_pb2.ReportVmResponse:
        """Say that a VM is lost or broke the protocol; answers whether its session has ended, and why."""
        request = pool_pb2.ReportVmRequest(vm_id=vm_id, reason=reason, detail=detail)
        try:
            return await self._stub.ReportVm(request, timeout=REPORT_SECONDS, metadata=telemetry.outgoing())
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error


def translate(error: grpc.aio.AioRpcError) -> errors.SandpoolError:
    """What the pool-manager answered, or that there was none to answer."""
    known = errors.from_rpc_error(error)
    if error.code() is not grpc.StatusCode.UNAVAILABLE or known.reason != error.code().name:
        return known
    if known.message.startswith(NEVER_SENT):
        return errors.Unavailable("POOL_MANAGER_UNREACHABLE", "the pool-manager cannot be reached")
    return errors.Unavailable("POOL_MANAGER_LOST", "the connection to the pool-manager broke under the call")
