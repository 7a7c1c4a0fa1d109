"""What happened to pools, sessions, VMs and nodes, and why: events of the installation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypedDict, Unpack

import grpc

from sandpool.calls import call, pages
from sandpool.errors import from_grpc
from sandpool.execution import RESUME_SECONDS, RESUME_TRIES
from sandpool.v1 import event_pb2 as pb
from sandpool.v1 import event_pb2_grpc


class Filter(TypedDict, total=False):
    """Which events; all that are given must match."""

    pool: str
    # Identifier of a session.
    session: str
    vm_id: str
    node_id: str


class History:
    """client.history. Every call raises SandpoolError."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float | None) -> None:
        self._stub: event_pb2_grpc.EventServiceAsyncStub = event_pb2_grpc.EventServiceStub(channel)
        self._timeout = timeout

    async def list(
        self, *, oldest_first: bool = False, after: int = 0, **chosen: Unpack[Filter]
    ) -> AsyncIterator[pb.Event]:
        """Every event that is kept, the newest first, after a sequence; stop reading when it is enough."""

        async def fetch(token: str) -> pb.ListEventsResponse:
            request = pb.ListEventsRequest(
                filter=pb.EventFilter(**chosen), ascending=oldest_first, after_sequence=after, page_token=token
            )
            return await call(self._stub.List, request, self._timeout)

        async for event in pages(fetch, "events"):
            yield event

    async def watch(self, *, after: int | None = None, **chosen: Unpack[Filter]) -> AsyncIterator[pb.Event]:
        """Events as they happen, for ever; with after, those since that sequence first.

        A connection that breaks is made again, and nothing is missed.
        """
        request, failures = pb.WatchEventsRequest(filter=pb.EventFilter(**chosen), after_sequence=after), 0
        while True:
            stream = self._stub.Watch(request)
            try:
                async for response in stream:
                    failures = 0
                    for event in response.events:
                        yield event
                        request.after_sequence = event.sequence
                    request.after_sequence = response.last_sequence
            except grpc.aio.AioRpcError as error:
                failures += 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or failures > RESUME_TRIES:
                    raise from_grpc(error) from error
            finally:
                stream.cancel()
            await asyncio.sleep(RESUME_SECONDS)
