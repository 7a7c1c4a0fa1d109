"""sandpool.v1.ExecutionService as clients see it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc
from scheduler import guest_check, validation
from scheduler.execution_stream import events
from scheduler.guest_check import StreamCheck
from scheduler.routes import Routes
from scheduler.session_call import SessionCall
from scheduler.unary import UnaryMethod
from service_kit.errors import Unimplemented

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

INPUT: UnaryMethod[pb.InputRequest, pb.InputResponse] = UnaryMethod(
    lambda route: route.executions.Input, validation.check_input, repeatable=False
)
SIGNAL: UnaryMethod[pb.SignalRequest, pb.SignalResponse] = UnaryMethod(
    lambda route: route.executions.Signal, validation.check_signal, repeatable=False
)
CANCEL: UnaryMethod[pb.CancelRequest, pb.CancelResponse] = UnaryMethod(
    lambda route: route.executions.Cancel, validation.check_named
)
GET: UnaryMethod[pb.GetExecutionRequest, pb.GetExecutionResponse] = UnaryMethod(
    lambda route: route.executions.Get,
    validation.check_named,
    lambda request, response: guest_check.check_execution(response.execution, request.execution_id),
)


def _check_list(request: pb.ListExecutionsRequest, response: pb.ListExecutionsResponse) -> None:
    guest_check.check_page(len(response.executions), request.page_size, response.next_page_token)
    for execution in response.executions:
        guest_check.check_execution(execution)


LIST: UnaryMethod[pb.ListExecutionsRequest, pb.ListExecutionsResponse] = UnaryMethod(
    lambda route: route.executions.List, validation.check_list, _check_list
)


class ExecutionService(execution_pb2_grpc.ExecutionServiceServicer):
    """Finds the session's VM and passes on what it says, checked."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def Execute(self, request: pb.ExecuteRequest, context: Context) -> AsyncIterator[pb.ExecutionEvent]:  # noqa: N802
        """Start and stream."""
        validation.check_execute(request)
        call = SessionCall(self._routes, request.session, context, allocates=True)
        request.ClearField("session")
        issued = not request.execution_id
        if issued:
            request.execution_id = os.urandom(10).hex()  # known here, the call to the guest can be repeated
        check = StreamCheck(request.execution_id, 0)

        return events(call, check, lambda route, options: route.executions.Execute(request, **options), issued)

    def Attach(self, request: pb.AttachRequest, context: Context) -> AsyncIterator[pb.ExecutionEvent]:  # noqa: N802
        """Stream from a position."""
        validation.check_attach(request)
        call = SessionCall(self._routes, request.session, context, allocates=False)
        request.ClearField("session")
        check = StreamCheck(request.execution_id, request.position)

        return events(call, check, lambda route, options: route.executions.Attach(request, **options), False)

    def Interact(  # noqa: N802
        self, requests: AsyncIterator[pb.InteractRequest], context: Context
    ) -> AsyncIterator[pb.ExecutionEvent]:
        """Not built yet."""
        raise Unimplemented("UNIMPLEMENTED", "terminals are not built yet")

    async def Input(self, request: pb.InputRequest, context: Context) -> pb.InputResponse:  # noqa: N802
        """Write to standard input."""
        return await INPUT.call(self._routes, request, context)

    async def Signal(self, request: pb.SignalRequest, context: Context) -> pb.SignalResponse:  # noqa: N802
        """Signal the program."""
        return await SIGNAL.call(self._routes, request, context)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:  # noqa: N802
        """End the execution."""
        return await CANCEL.call(self._routes, request, context)

    async def Get(self, request: pb.GetExecutionRequest, context: Context) -> pb.GetExecutionResponse:  # noqa: N802
        """Describe one."""
        return await GET.call(self._routes, request, context)

    async def List(  # noqa: N802
        self, request: pb.ListExecutionsRequest, context: Context
    ) -> pb.ListExecutionsResponse:
        """Newest first."""
        return await LIST.call(self._routes, request, context)
