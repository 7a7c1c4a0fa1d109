"""What each change is told as: rows of sandpool.v1.Event. Pure."""

from dataclasses import dataclass

from pool_manager.store import EventRow, NodeRow, PoolRow, SessionRow, VmRow
from sandpool.v1 import event_pb2 as pb
from sandpool.v1 import pool_pb2, session_pb2


@dataclass(frozen=True)
class End:
    """Of a VM. reason is a number of EndReason."""

    reason: int
    at: float
    detail: str

    @property
    def name(self) -> str:
        """Of the reason, without its prefix."""
        return session_pb2.EndReason.Name(self.reason).removeprefix("END_REASON_")  # type: ignore[arg-type]


def vm_added(row: VmRow) -> EventRow:
    """With the first of its rows."""
    detail = f"generation {row.generation}, template {row.template_id[:12]}"
    return EventRow(
        pb.EVENT_TYPE_VM_ADDED, row.created_at, "REFILL", detail, row.pool, vm_id=row.vm_id, node_id=row.node_id
    )


def vm_warm(pool: str, vm_id: str, node_id: str, at: float) -> EventRow:
    """Proven."""
    return EventRow(pb.EVENT_TYPE_VM_WARM, at, "PROVEN", pool=pool, vm_id=vm_id, node_id=node_id)


def vm_ended(end: End, pool: str, vm_id: str, node_id: str) -> EventRow:
    """Confirmed to be gone."""
    return EventRow(pb.EVENT_TYPE_VM_ENDED, end.at, end.name, end.detail, pool, vm_id=vm_id, node_id=node_id)


def session_began(row: SessionRow, epoch: int, node_id: str) -> EventRow:
    """With the assignment of its VM."""
    return EventRow(
        pb.EVENT_TYPE_SESSION_BEGAN,
        row.created_at,
        "ASSIGNED",
        "",
        row.pool,
        row.identifier,
        epoch,
        row.vm_id,
        node_id,
    )


def session_ended(end: End, pool: str, vm_id: str, node_id: str, session: str, epoch: int) -> EventRow:
    """With its VM."""
    return EventRow(
        pb.EVENT_TYPE_SESSION_ENDED, end.at, end.name, end.detail, pool, session, epoch, vm_id=vm_id, node_id=node_id
    )


def pool_created(name: str, at: float) -> EventRow:
    """By its first row."""
    return EventRow(pb.EVENT_TYPE_POOL_CREATED, at, "REQUESTED", pool=name)


def pool_updated(was: PoolRow, row: PoolRow, paths: list[str], at: float) -> EventRow:
    """Settings, or what VMs are made of."""
    anew = row.generation != was.generation
    detail = ", ".join(paths) + (f"; generation {row.generation}" if anew else "")
    return EventRow(pb.EVENT_TYPE_POOL_UPDATED, at, "GENERATION" if anew else "SETTINGS", detail, row.name)


def pool_deleting(name: str, forced: bool, at: float) -> EventRow:
    """From now on no new sessions."""
    return EventRow(pb.EVENT_TYPE_POOL_DELETING, at, "FORCED" if forced else "DRAINED", pool=name)


def pool_removed(name: str, at: float) -> EventRow:
    """Its last VM is gone."""
    return EventRow(pb.EVENT_TYPE_POOL_REMOVED, at, "EMPTY", pool=name)


def condition(
    begins: bool, pool: str, kind: pool_pb2.PoolConditionType.ValueType, reason: str, message: str, at: float
) -> EventRow:
    """A condition of a pool became true, or is not true any more."""
    happens = pb.EVENT_TYPE_POOL_CONDITION_BEGAN if begins else pb.EVENT_TYPE_POOL_CONDITION_ENDED
    name = pool_pb2.PoolConditionType.Name(kind).removeprefix("POOL_CONDITION_TYPE_")
    text = "" if name == reason else f"{name}: {message}" if message else name
    return EventRow(happens, at, reason, text, pool)


def node_registered(row: NodeRow, at: float) -> EventRow:
    """Known, or known at another address."""
    return EventRow(pb.EVENT_TYPE_NODE_REGISTERED, at, "REGISTERED", f"agent {row.agent_address}", node_id=row.node_id)


def node_ready(node_id: str, vms: int, at: float) -> EventRow:
    """Its snapshot has arrived."""
    return EventRow(pb.EVENT_TYPE_NODE_READY, at, "SNAPSHOT", f"{vms} VMs there", node_id=node_id)


def node_unreachable(node_id: str, reason: str, at: float) -> EventRow:
    """Nothing is heard of it."""
    return EventRow(pb.EVENT_TYPE_NODE_UNREACHABLE, at, reason, node_id=node_id)


def node_rebooted(node_id: str, at: float) -> EventRow:
    """Another boot id."""
    return EventRow(pb.EVENT_TYPE_NODE_REBOOTED, at, "BOOT_ID_CHANGED", node_id=node_id)
