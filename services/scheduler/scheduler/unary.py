"""A unary call to the guest of a session: sent, and sent again where that is safe; its answer checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from sandpool.v1 import session_pb2
from scheduler.guest_check import GuestProtocolError
from scheduler.routes import Route, Routes
from scheduler.session_call import SessionCall
from service_kit import telemetry


class Answer(Protocol):
    """A response of the data plane."""

    @property
    def session(self) -> session_pb2.SessionBinding:
        """Set by the scheduler."""

    def DiscardUnknownFields(self) -> None:  # noqa: N802
        """As every message."""


class Asking(Protocol):
    """A request of the data plane."""

    @property
    def session(self) -> session_pb2.SessionRef:
        """Set by the client."""


Q = TypeVar("Q", bound=Asking)
A = TypeVar("A", bound=Answer)


@dataclass(frozen=True)
class UnaryMethod(Generic[Q, A]):
    """One method of the guest.

    stub finds it on a route; validate refuses a bad request; check refuses a bad answer (GuestProtocolError).
    repeatable: a second call does no harm.
    """

    stub: Callable[[Route], Callable[..., Awaitable[A]]]
    validate: Callable[[Q], None]
    check: Callable[[Q, A], None] = lambda _request, _response: None
    repeatable: bool = True
    allocates: bool = False

    async def call(self, routes: Routes, request: Q, context: grpc.aio.ServicerContext[Any, Any]) -> A:
        """Serve a client's request. Raises SandpoolError."""
        self.validate(request)
        with SessionCall(routes, request.session, context, allocates=self.allocates) as call:
            _clear_session(request)
            while True:
                route = await call.reach()
                try:
                    response = await self._send(route, request, call)
                except grpc.aio.AioRpcError as error:
                    await call.fail(error, repeatable=self.repeatable)
                except GuestProtocolError as error:
                    raise await call.violated(error) from error
                else:
                    call.answered()
                    response.session.CopyFrom(call.binding)
                    return response

    async def _send(self, route: Route, request: Q, call: SessionCall) -> A:
        with telemetry.stage("guest"):
            response = await self.stub(route)(request, timeout=call.seconds_left(), metadata=telemetry.outgoing())
        if response is None:  # grpcio's answer for bytes that are no such message
            raise GuestProtocolError("a response that cannot be parsed")
        response.DiscardUnknownFields()
        self.check(request, response)
        return response


def _clear_session(request: Any) -> None:
    """A guest knows nothing of sessions."""
    message: Message = request
    message.ClearField("session")
