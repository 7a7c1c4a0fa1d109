"""The bytes of files, from a guest and to it: nothing is held here, and both ends are paced by each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc

from sandpool.v1 import execution_pb2
from sandpool.v1 import file_pb2 as pb
from scheduler import file_validation, metrics
from scheduler.file_check import ReadCheck, check_written
from scheduler.guest_check import GuestProtocolError
from scheduler.routes import Route
from scheduler.session_call import MIN_COOLDOWN_SECONDS, SessionCall
from scheduler.stream_clock import StreamClock
from scheduler.upload_status import UploadStatus
from service_kit import telemetry


async def read(call: SessionCall, request: pb.ReadFileRequest) -> AsyncIterator[pb.ReadFileResponse]:
    """Everything up to the end. May begin again on another connection until the first message has come."""
    telemetry.add_first_stage("check")
    check = ReadCheck(request.path, request.length if request.HasField("length") else None)
    with call, StreamClock() as clock:
        while True:
            route = await call.reach()
            clock.sent()
            stream = route.files.Read(request, timeout=call.seconds_left(), metadata=telemetry.outgoing())
            try:
                async for response in stream:
                    clock.received()
                    if response is None:  # grpcio's answer for bytes that are no such message
                        raise GuestProtocolError("a message that cannot be parsed")
                    check.admit(response)
                    if response.HasField("info"):
                        call.answered()
                        response.info.session.CopyFrom(call.binding)
                    metrics.TO_CLIENT.inc(len(response.data))
                    yield response
                    clock.delivered()
                check.finish()
                return
            except GuestProtocolError as error:
                clock.stopped()
                raise await call.violated(error) from error
            except grpc.aio.AioRpcError as error:
                clock.stopped()
                if check.ended:
                    return
                await call.fail(error, repeatable=not check.begun)
            finally:
                stream.cancel()
                clock.stopped()


async def write(
    call: SessionCall, first: pb.WriteFileRequest, messages: AsyncIterator[pb.WriteFileRequest]
) -> pb.WriteFileResponse:
    """Pass on the header and what follows; nothing is visible in the session unless all of it was."""
    with call:
        route = await _settle(call)
        call.consumed = True
        stream = route.files.Write(timeout=call.seconds_left(), metadata=telemetry.outgoing())
        status = UploadStatus(stream)
        try:
            with telemetry.stage("guest"):
                whole = await _send(stream, first, messages)
                response = await stream
            if response is None or not whole:
                raise GuestProtocolError("an answer before the end, or one that cannot be parsed")
            response.DiscardUnknownFields()
            check_written(response, first.header.path)
        except GuestProtocolError as error:
            raise await call.violated(error) from error
        except grpc.aio.AioRpcError as error:
            await call.fail(status.unmask(error), repeatable=False)
            raise
        finally:
            stream.cancel()
        call.answered()
        response.session.CopyFrom(call.binding)
        return response


async def _settle(call: SessionCall) -> Route:
    """A route whose guest has just taken a call, so that its session does not end as idle under the stream."""
    while True:
        route = await call.reach()
        if time.monotonic() - route.answered_at < MIN_COOLDOWN_SECONDS / 2:
            return route
        probe = execution_pb2.ListExecutionsRequest(page_size=1)
        try:
            with telemetry.stage("guest"):
                await route.executions.List(probe, timeout=call.seconds_left(), metadata=telemetry.outgoing())
        except grpc.aio.AioRpcError as error:
            await call.fail(error, repeatable=True)
        else:
            call.answered()
            return route


async def _send(
    stream: grpc.aio.StreamUnaryCall[pb.WriteFileRequest, pb.WriteFileResponse],
    first: pb.WriteFileRequest,
    messages: AsyncIterator[pb.WriteFileRequest],
) -> bool:
    """False: the guest ended the call before everything was sent."""
    try:
        await stream.write(first)
        async for message in messages:
            file_validation.check_data(message)
            await stream.write(message)
            metrics.TO_GUEST.inc(len(message.data))
        await stream.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):  # it has ended; its status says why
        return False
    return True
