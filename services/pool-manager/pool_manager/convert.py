"""From rows and models to the messages of the public API. Pure."""

from pool_manager.acquire import Binding
from pool_manager.clock import Clock
from pool_manager.model import ASSIGNED, PROVISIONING, SEALED, Pool
from pool_manager.node_link import NodeLink
from pool_manager.store import EventRow, SessionRow
from sandpool.v1 import event_pb2, node_pb2, pool_pb2, session_pb2


def pool(source: Pool) -> pool_pb2.Pool:
    """A pool with its counts and conditions."""
    row = source.row
    message = pool_pb2.Pool(name=row.name, spec=source.spec, generation=row.generation)
    message.created_at.FromNanoseconds(int(row.created_at * 1e9))
    message.state = pool_pb2.POOL_STATE_DELETING if row.deleting else pool_pb2.POOL_STATE_ACTIVE
    message.counts.provisioning = source.count(PROVISIONING) + source.starting
    message.counts.warm, message.counts.assigned = len(source.warm) + len(source.stale), source.count(ASSIGNED)
    message.counts.outdated = len(source.stale)
    message.counts.sealed, message.counts.waiting = source.count(SEALED), source.is_waiting()
    for kind, condition in sorted(source.conditions.items()):
        added = message.conditions.add(type=kind, reason=condition.reason, message=condition.message)
        added.since.FromNanoseconds(int(condition.since * 1e9))
    return message


def session(row: SessionRow, node_id: str, clock: Clock) -> session_pb2.Session:
    """A live session."""
    message = session_pb2.Session(
        pool=row.pool, identifier=row.identifier, epoch=row.epoch, vm_id=row.vm_id, node_id=node_id
    )
    message.created_at.FromNanoseconds(int(clock.shown(row.created_at) * 1e9))
    message.expires_at.FromNanoseconds(int(clock.shown(row.expires_at) * 1e9))
    message.cooldown.FromNanoseconds(int(row.cooldown_seconds * 1e9))
    return message


def binding(source: Binding, clock: Clock) -> session_pb2.SessionBinding:
    """Which session a call runs in."""
    message = session_pb2.SessionBinding(epoch=source.session.epoch, created=source.created, vm_id=source.session.vm_id)
    if source.previous is not None:
        message.previous.epoch = source.previous.epoch
        message.previous.end_reason = source.previous.reason  # type: ignore[assignment]
        message.previous.ended_at.FromNanoseconds(int(clock.shown(source.previous.ended_at) * 1e9))
    return message


def node(link: NodeLink, vms: int) -> node_pb2.Node:
    """A node as it is known now."""
    message = node_pb2.Node()
    message.CopyFrom(link.node)
    message.vms = vms
    if link.last_seen_at:
        message.last_seen_at.FromNanoseconds(int(link.last_seen_at * 1e9))
    return message


def event(row: EventRow, clock: Clock) -> event_pb2.Event:
    """Something that happened."""
    message = event_pb2.Event(
        sequence=row.sequence,
        type=row.type,  # type: ignore[arg-type]
        reason=row.reason,
        detail=row.detail,
        pool=row.pool,
        session=row.session,
        epoch=row.epoch,
        vm_id=row.vm_id,
        node_id=row.node_id,
    )
    message.at.FromNanoseconds(int(clock.shown(row.at) * 1e9))
    return message
