"""sandpool.guest.v1.GuestService: the life of this agent, from template to clone to sealed."""

import asyncio
import os
import time
from typing import Any, Protocol

from google.protobuf import duration_pb2, timestamp_pb2
from grpclib.const import Status

from guest_agent.execution import Executions
from guest_agent.execution_service import ExecutionService
from guest_agent.python_language import PythonLanguage
from guest_agent.rpc import Refused
from guest_agent.worker_process import WorkerLost
from sandpool.guest.v1 import guest_pb2 as pb
from sandpool.v1 import execution_pb2

PROTOCOL_VERSION = 2  # guest.proto says what came with each
AGENT_VERSION = "0.1.0"
# The interpreter has adapted its code to what it does by then.
REHEARSALS = 4
# As long as those that clones get.
REHEARSED_NAME = "vm-000000000000"


class Identity(Protocol):
    """What makes a machine itself: a VM's kernel, or nothing at all for an agent that runs natively."""

    def assume(self, request: pb.PrepareRequest) -> None:
        """Take entropy, clock, machine-id, boot-id, hostname and limits from the request. Raises OSError."""

    def set_clock(self, now: timestamp_pb2.Timestamp) -> None:
        """Raises OSError."""

    def settle(self) -> None:
        """Write everything to disk and drop caches, before the machine is frozen."""


class GuestService:
    """Describe, Quiesce, Prepare, SetClock, Seal, Unseal."""

    def __init__(
        self, executions: Executions, execution: ExecutionService, python: PythonLanguage, identity: Identity
    ) -> None:
        self._executions = executions
        self._execute = execution.execute
        self._activity = executions.activity
        self._python = python
        self._identity = identity
        self._preparing = asyncio.Lock()
        self._prepared: tuple[pb.PrepareRequest, pb.PrepareResponse] | None = None

    def methods(self) -> dict[str, Any]:
        """By rpc name."""
        return {
            "Describe": self.describe,
            "Quiesce": self.quiesce,
            "Prepare": self.prepare,
            "SetClock": self.set_clock,
            "Seal": self.seal,
            "Unseal": self.unseal,
        }

    async def describe(self, _request: pb.DescribeRequest) -> pb.DescribeResponse:
        """What this is."""
        return pb.DescribeResponse(
            protocol_version=PROTOCOL_VERSION,
            agent_version=AGENT_VERSION,
            vm_id=self._prepared[0].vm_id if self._prepared else "",
            activity=self._describe_activity(),
        )

    async def quiesce(self, _request: pb.QuiesceRequest) -> pb.QuiesceResponse:
        """Get everything going that a clone should find going, and rehearse: what was run once is mapped and found."""
        for _ in range(REHEARSALS):
            await self._rehearse_execution()
            await self._rehearse_becoming()
        self._identity.settle()
        return pb.QuiesceResponse(protocol_version=PROTOCOL_VERSION, agent_version=AGENT_VERSION)

    async def _rehearse_execution(self) -> None:
        """Of no code at all: the session that comes begins with cell 1."""
        request = execution_pb2.ExecuteRequest(code=execution_pb2.Code())
        async for event in self._execute(execution_pb2.ExecuteRequest.FromString(request.SerializeToString())):
            event.SerializeToString()
        self._executions.by_id.clear()

    async def _rehearse_becoming(self) -> None:
        request = pb.PrepareRequest(entropy=os.urandom(256), machine_id=os.urandom(16).hex(), hostname=REHEARSED_NAME)
        request.now.FromNanoseconds(time.time_ns())
        (await self._become(pb.PrepareRequest.FromString(request.SerializeToString()))).SerializeToString()

    async def prepare(self, request: pb.PrepareRequest) -> pb.PrepareResponse:
        """Become a VM of its own, also after a life as another one or as the same."""
        async with self._preparing:
            if self._prepared is not None and _same(self._prepared[0], request):
                return self._prepared[1]
            if request.resumes_vm_id != (self._prepared[0].vm_id if self._prepared else ""):
                raise Refused(Status.FAILED_PRECONDITION, "PREPARED", "prepared as another vm", "resumes_vm_id")
            response = await self._become(request)
            self._prepared = request, response
            return response

    async def _become(self, request: pb.PrepareRequest) -> pb.PrepareResponse:
        self._executions.thaw()
        try:
            self._identity.assume(request)
        except OSError as error:
            raise Refused(Status.INTERNAL, "PREPARE_FAILED", f"identity: {error.strerror}") from error
        self._executions.background_is_activity = request.background_is_activity
        now = timestamp_pb2.Timestamp()
        now.FromNanoseconds(time.time_ns())
        # A sample is the proof that the worker answers, and that it is not the worker of another clone.
        try:
            sample = await self._python.seed(os.urandom(32))
        except (OSError, WorkerLost) as error:
            raise Refused(Status.INTERNAL, "PREPARE_FAILED", "the Python worker does not answer") from error
        response = pb.PrepareResponse(
            protocol_version=PROTOCOL_VERSION,
            random_sample=os.urandom(32),
            now=now,
            worker_samples={"python": sample},
        )
        self._activity.reset(time.monotonic())
        return response

    async def set_clock(self, request: pb.SetClockRequest) -> pb.SetClockResponse:
        """Once more: it was late, or is wrong by now."""
        try:
            self._identity.set_clock(request.now)
        except (OSError, ValueError) as error:
            raise Refused(Status.INTERNAL, "CLOCK_FAILED", f"the clock cannot be set: {error}") from error
        return pb.SetClockResponse()

    async def seal(self, request: pb.SealRequest) -> pb.SealResponse:
        """Refuse from now on, if idle."""
        seconds = request.only_if_idle_for.ToNanoseconds() / 1e9
        answer = self._activity.seal(time.monotonic(), seconds, request.force)
        response = pb.SealResponse(sealed=answer.sealed, activity=self._describe_activity())
        if answer.remaining_seconds is not None:
            response.remaining.FromNanoseconds(int(answer.remaining_seconds * 1e9))
        return response

    async def unseal(self, _request: pb.UnsealRequest) -> pb.UnsealResponse:
        """Serve again."""
        self._activity.unseal()
        return pb.UnsealResponse()

    def _describe_activity(self) -> pb.Activity:
        idle = self._activity.idle_seconds(time.monotonic())
        idle_for = duration_pb2.Duration()
        if idle is not None:
            idle_for.FromNanoseconds(int(idle * 1e9))
        return pb.Activity(
            calls=self._activity.calls,
            executions=self._activity.executions,
            idle_for=None if idle is None else idle_for,
        )


def _same(one: pb.PrepareRequest, other: pb.PrepareRequest) -> bool:
    """A repeat. A VM that resumes as itself, and does so again, is told apart by what it is seeded with."""
    named = (one.vm_id, one.resumes_vm_id) == (other.vm_id, other.resumes_vm_id)
    return named and (one.vm_id != one.resumes_vm_id or one.entropy == other.entropy)
