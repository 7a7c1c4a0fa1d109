"""From protobuf service descriptors to grpclib handlers, with errors as status and `sandpool-reason`."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpclib.const
import grpclib.server
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from grpclib.const import Status

from guest_agent.activity import Activity, Sealed

Unary = Callable[[Any], Awaitable[Any]]
ServerStream = Callable[[Any], AsyncIterator[Any]]
ClientStream = Callable[[AsyncIterator[Any]], Awaitable[Any]]


# A grpcio client whose call ends while it is still sending may see INTERNAL instead of the status: so what it sends is
# read to its end first, up to this much.
DRAINED_BYTES = 256 << 20


class Refused(Exception):
    """What the caller is told: a status, a reason in UPPER_SNAKE_CASE, a message, and the bad field if there is one."""

    def __init__(self, status: Status, reason: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.status, self.reason, self.field = status, reason, field


class Service:
    """One gRPC service: methods by name; those that are missing answer UNIMPLEMENTED.

    activity is given for services of the data plane: every call counts, and none is let in once sealed.
    """

    def __init__(
        self, descriptor: ServiceDescriptor, methods: dict[str, Callable[..., Any]], activity: Activity | None
    ):
        self._descriptor = descriptor
        self._methods = methods
        self._activity = activity

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        """grpclib's hook."""
        handlers = {}
        for method in self._descriptor.methods:
            cardinality = {
                (False, False): grpclib.const.Cardinality.UNARY_UNARY,
                (False, True): grpclib.const.Cardinality.UNARY_STREAM,
                (True, False): grpclib.const.Cardinality.STREAM_UNARY,
                (True, True): grpclib.const.Cardinality.STREAM_STREAM,
            }[method.client_streaming, method.server_streaming]
            handlers[f"/{self._descriptor.full_name}/{method.name}"] = grpclib.const.Handler(
                self._handler(self._methods.get(method.name), cardinality),
                cardinality,
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
            )
        return handlers

    def _handler(
        self, method: Callable[..., Any] | None, cardinality: grpclib.const.Cardinality
    ) -> Callable[[grpclib.server.Stream[Any, Any]], Awaitable[None]]:
        async def handle(stream: grpclib.server.Stream[Any, Any]) -> None:
            try:
                if method is None:
                    raise Refused(Status.UNIMPLEMENTED, "UNIMPLEMENTED", "not built yet")
                if self._activity is not None:
                    self._activity.begin_call()
            except Refused as error:
                await _refuse(stream, error)
                return
            except Sealed:
                await _refuse(stream, Refused(Status.FAILED_PRECONDITION, "SEALED", "the session has ended"))
                return
            try:
                await _serve(stream, method, cardinality)
            except Refused as error:
                if cardinality.client_streaming:
                    await _drain(stream)
                await _refuse(stream, error)
            finally:
                if self._activity is not None:
                    self._activity.end_call(time.monotonic())

        return handle


async def _serve(
    stream: grpclib.server.Stream[Any, Any], method: Callable[..., Any], cardinality: grpclib.const.Cardinality
) -> None:
    request = _requests(stream) if cardinality.client_streaming else await _receive(stream)
    if request is None:
        raise _malformed()
    if cardinality.server_streaming:
        events = method(request)
        try:
            async for response in events:
                await stream.send_message(response)
        finally:
            await events.aclose()
    else:
        await stream.send_message(await method(request))


async def _requests(stream: grpclib.server.Stream[Any, Any]) -> AsyncIterator[Any]:
    while (message := await _receive(stream)) is not None:
        yield message


async def _receive(stream: grpclib.server.Stream[Any, Any]) -> Any:
    """The next message; None at the end. Raises Refused."""
    try:
        return await stream.recv_message()
    except DecodeError:
        raise _malformed() from None


def _malformed() -> Refused:
    return Refused(Status.INVALID_ARGUMENT, "MALFORMED_REQUEST", "the bytes of the request are no such message")


async def _drain(stream: grpclib.server.Stream[Any, Any]) -> None:
    left = DRAINED_BYTES
    with suppress(Refused):
        while left > 0 and (message := await _receive(stream)) is not None:
            left -= message.ByteSize()


async def _refuse(stream: grpclib.server.Stream[Any, Any], error: Refused) -> None:
    metadata = {"sandpool-reason": error.reason} | ({"sandpool-field": error.field} if error.field else {})
    await stream.send_trailing_metadata(status=error.status, status_message=str(error)[:1024], metadata=metadata)
