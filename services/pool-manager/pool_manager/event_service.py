"""sandpool.v1.EventService: what happened and why, from the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pool_manager import convert
from pool_manager.clock import Clock
from pool_manager.paging import DEFAULT_SIZE, MAX_SIZE
from pool_manager.store import EventQuery, Store
from sandpool.v1 import event_pb2 as pb
from sandpool.v1 import event_pb2_grpc
from service_kit.errors import InvalidArgument, ResourceExhausted, Unavailable

Context = Any
# Of a pool's name, an identifier, a VM's or a node's id; also of a page token.
MAX_FILTER = 256
# In one response of Watch: the next ones are read when these are sent, so a slow reader costs nothing.
WATCH_BATCH = 500
MAX_WATCHERS = 100


class EventService(event_pb2_grpc.EventServiceServicer):
    """Reads only. Every Watch ends when stopping is set."""

    def __init__(self, store: Store, clock: Clock, stopping: asyncio.Event) -> None:
        self._store, self._clock, self._stopping = store, clock, stopping
        self._watchers = 0

    async def List(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:  # noqa: N802
        """One page; its token is the sequence that the next one goes on from."""
        if not 0 <= request.page_size <= MAX_SIZE:
            raise InvalidArgument("INVALID_FIELD", f"must be 0 to {MAX_SIZE}", field="page_size")
        size, token = request.page_size or DEFAULT_SIZE, _sequence(request.page_token)
        after = _bounded(request.after_sequence)
        if request.ascending:
            query = _query(request.filter, size + 1, max(after, token or 0))
        else:
            query = _query(request.filter, size + 1, after, before=token, ascending=False)
        page = await self._store.events(query)
        shown = page.events[:size]
        more = str(shown[-1].sequence) if len(page.events) > size else ""
        events = [convert.event(row, self._clock) for row in shown]
        return pb.ListEventsResponse(events=events, next_page_token=more, first_sequence=page.first)

    async def Watch(  # noqa: N802
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """What is in the store, then what comes."""
        query = _query(request.filter, WATCH_BATCH, _bounded(request.after_sequence))
        if self._watchers >= MAX_WATCHERS:
            raise ResourceExhausted("TOO_MANY_WATCHERS", f"{MAX_WATCHERS} watch already", retry_after_seconds=1.0)
        self._watchers += 1
        try:
            if not request.HasField("after_sequence"):
                last = (await self._store.events(_query(request.filter, 1, ascending=False))).last
                query = _query(request.filter, WATCH_BATCH, last)
            first_response = True
            while True:
                added = self._store.events_added()  # before we look, so that nothing comes in between
                page = await self._store.events(query)
                full = len(page.events) == WATCH_BATCH
                last = page.events[-1].sequence if full else max(page.last, query.after)
                if page.events or first_response:
                    events = [convert.event(row, self._clock) for row in page.events]
                    yield pb.WatchEventsResponse(events=events, last_sequence=last, first_sequence=page.first)
                    first_response = False
                query = _query(request.filter, WATCH_BATCH, last)
                if not full and not await self._wait(added):
                    raise Unavailable("SHUTTING_DOWN", "the pool-manager ends: watch again from the last sequence")
        finally:
            self._watchers -= 1

    async def _wait(self, added: asyncio.Event) -> bool:
        """Until there are more; False when we stop."""
        waits = [asyncio.ensure_future(event.wait()) for event in (added, self._stopping)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return not self._stopping.is_set()
        finally:
            for wait in waits:
                wait.cancel()


def _query(
    chosen: pb.EventFilter, limit: int, after: int = 0, before: int | None = None, *, ascending: bool = True
) -> EventQuery:
    """Raises InvalidArgument."""
    values = {name: getattr(chosen, name) for name in ("pool", "session", "vm_id", "node_id")}
    for name, value in values.items():
        if len(value) > MAX_FILTER:
            raise InvalidArgument("INVALID_FIELD", f"at most {MAX_FILTER} characters", field=f"filter.{name}")
    return EventQuery(limit, after, before, ascending, **values)


def _bounded(sequence: int) -> int:
    """As SQLite counts: nothing is greater."""
    return min(sequence, (1 << 63) - 1)


def _sequence(token: str) -> int | None:
    """Raises InvalidArgument."""
    if not token:
        return None
    if len(token) > 20 or not token.isascii() or not token.isdecimal():
        raise InvalidArgument("INVALID_FIELD", "is not one of ours", field="page_token")
    return _bounded(int(token))
