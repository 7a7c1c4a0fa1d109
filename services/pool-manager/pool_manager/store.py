"""What is kept: rows, and the one interface to whatever keeps them."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

# How a session of this name ended is told for so long.
KEEP_ENDED_SECONDS = 86_400.0


# Events that are kept: so many of the latest, for so long.
KEEP_EVENTS, KEEP_EVENTS_SECONDS = 100_000, 7 * 86_400.0


class Conflict(Exception):
    """The compare-and-set lost: the VM is not free, the session exists, the pool is another. Nothing was changed."""


@dataclass(frozen=True)
class PoolRow:
    """A pool. spec is a serialized sandpool.v1.PoolSpec with every default filled in; created_at in epoch seconds."""

    name: str
    spec: bytes
    generation: int
    deleting: bool
    created_at: float


@dataclass(frozen=True)
class VmRow:
    """A VM that exists or is about to. state is PROVISIONING, WARM or ASSIGNED."""

    vm_id: str
    pool: str
    generation: int
    node_id: str
    template_id: str
    state: str
    created_at: float


@dataclass(frozen=True)
class SessionRow:
    """A live session."""

    pool: str
    identifier: str
    epoch: int
    vm_id: str
    created_at: float
    expires_at: float
    cooldown_seconds: float


@dataclass(frozen=True)
class EndedRow:
    """How the last session of a name ended. reason is a number of sandpool.v1.EndReason."""

    epoch: int
    reason: int
    ended_at: float


@dataclass(frozen=True)
class NodeRow:
    """A node that has registered once."""

    node_id: str
    agent_address: str
    tunnel_address: str
    boot_id: str


@dataclass(frozen=True)
class EventRow:
    """Something that happened: see sandpool.v1.Event. type is a number of EventType; sequence is given by the store."""

    type: int
    at: float
    reason: str = ""
    detail: str = ""
    pool: str = ""
    session: str = ""
    epoch: int = 0
    vm_id: str = ""
    node_id: str = ""
    sequence: int = 0


@dataclass(frozen=True)
class EventQuery:
    """Which events, and from where: at most limit with after < sequence < before, of every value that is not empty."""

    limit: int
    after: int = 0
    before: int | None = None
    ascending: bool = True
    pool: str = ""
    session: str = ""
    vm_id: str = ""
    node_id: str = ""


@dataclass(frozen=True)
class EventPage:
    """What a query found; first and last are of all events that are kept, at that moment (0: there are none)."""

    events: list[EventRow]
    first: int
    last: int


@dataclass(frozen=True)
class Everything:
    """What a pool-manager begins with."""

    pools: list[PoolRow]
    vms: list[VmRow]
    sessions: list[SessionRow]
    nodes: list[NodeRow]


class Store(Protocol):
    """Every method returns when its change is durable, and with it the events that tell it: those that are given, or
    those that the change itself says. Errors of the store itself: Unavailable.
    """

    async def clock_offset(self, boot_id: str, offset: float) -> float:
        """What was said first in this boot of the host: see Clock."""

    async def load(self) -> Everything:
        """All rows."""

    async def save_pool(self, row: PoolRow, was: PoolRow | None, *events: EventRow) -> None:
        """Change the pool if it still is as it was; insert it if it was None. Raises Conflict."""

    async def remove_pool(self, name: str, *events: EventRow) -> None:
        """With everything that was kept of its sessions."""

    async def save_node(self, row: NodeRow, *events: EventRow) -> None:
        """Insert or replace."""

    async def add_vm(self, row: VmRow) -> None:
        """Before its creation is asked for. Event: VM_ADDED."""

    async def set_warm(self, vm_id: str, now: float) -> None:
        """PROVISIONING to WARM. Event: VM_WARM."""

    async def assign(self, session: SessionRow) -> tuple[int, EndedRow | None]:
        """One transaction: WARM to ASSIGNED, the session row, a new epoch (session.epoch is ignored), SESSION_BEGAN.

        Returns the epoch and how the last session of that name ended, if that was lately. Raises Conflict.
        """

    async def end_vms(self, ends: Mapping[str, tuple[int, str]], now: float) -> None:
        """One transaction: these VMs and their sessions are gone; why, and a detail, are kept by vm id. Idempotent.

        Events: SESSION_ENDED of those that had one, VM_ENDED.
        """

    async def ended(self, pool: str, identifier: str, since: float) -> EndedRow | None:
        """How the last session of that name ended, if not before since."""

    def on_writable(self, tell: Callable[[bool, str], None]) -> None:
        """Call tell on this loop once it is known whether the store can write, or why not, and when that changes."""

    async def check(self) -> None:
        """A write that changes nothing."""

    async def record(self, *events: EventRow) -> None:
        """What happened and changed no row."""

    async def events(self, query: EventQuery) -> EventPage:
        """What happened; never in the way of a writer."""

    def events_added(self) -> asyncio.Event:
        """Set once events were added later than this call."""

    async def close(self) -> None:
        """After everything that is under way."""
