"""`sandpool events`."""

from __future__ import annotations

from typing import Any

import click

from sandpool.cli.output import as_dict, emit
from sandpool.enum_names import short_name
from sandpool.history import Filter, History
from sandpool.v1 import event_pb2

DEFAULT_LIMIT = 50
HEADER = f"{'SEQUENCE':>8}  {'TIME (UTC)':23}  {'EVENT':22} {'REASON':22} {'WHAT':34} DETAIL"


async def tell(
    history: History, chosen: dict[str, str], limit: int | None, after: int | None, follow: bool, as_json: bool
) -> None:
    """The newest comes last; with follow, for ever. Raises SandpoolError."""
    filters: Filter = {name: value for name, value in chosen.items() if value}  # type: ignore[assignment]
    # What to go on from: without limit there is no past to be told, and without any event that matched there is none.
    last = None if limit == 0 and after is None else after or 0
    if not as_json:
        click.echo(HEADER)
    async for event in _past(history, filters, limit, after):
        _show(event, as_json)
        last = event.sequence
    if follow:
        async for event in history.watch(after=last, **filters):
            _show(event, as_json)


async def _past(history: History, filters: Filter, limit: int | None, after: int | None) -> Any:
    """After a sequence, from there on; else the latest. At most limit, if it is given."""
    count = 0
    if after is not None:
        async for event in history.list(oldest_first=True, after=after, **filters):
            if limit is not None and count == limit:
                return
            count += 1
            yield event
        return
    latest: list[event_pb2.Event] = []
    most = DEFAULT_LIMIT if limit is None else limit
    if most:
        async for event in history.list(**filters):
            latest.append(event)
            if len(latest) == most:
                break
    for event in reversed(latest):
        yield event


def _show(event: event_pb2.Event, as_json: bool) -> None:
    if as_json:
        emit(as_dict(event))
        return
    kind = short_name(event_pb2.EventType.DESCRIPTOR, event.type)
    time = event.at.ToDatetime().isoformat(" ", "milliseconds")
    what = f"{event.pool}/{event.session}" if event.session else event.vm_id or event.pool or event.node_id
    more = [event.detail] + ([f"vm {event.vm_id}"] if event.session else [])
    click.echo(f"{event.sequence:>8}  {time:23}  {kind:22} {event.reason:22} {what:34} {'; '.join(filter(None, more))}")
