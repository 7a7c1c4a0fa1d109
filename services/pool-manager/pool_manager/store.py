"""What is kept: rows, and the one interface to whatever keeps them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

# How a session of this name ended is told for so long.
KEEP_ENDED_SECONDS = 86_400.0


class Conflict(Exception):
    """The compare-and-set lost: the VM is not free or the session exists. Nothing was changed."""


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
class Everything:
    """What a pool-manager begins with."""

    pools: list[PoolRow]
    vms: list[VmRow]
    sessions: list[SessionRow]
    nodes: list[NodeRow]


class Store(Protocol):
    """Every method returns when its change is durable. Errors of the store itself: Unavailable."""

    async def clock_offset(self, boot_id: str, offset: float) -> float:
        """What was said first in this boot of the host: see Clock."""

    async def load(self) -> Everything:
        """All rows."""

    async def save_pool(self, row: PoolRow) -> None:
        """Insert or replace."""

    async def remove_pool(self, name: str) -> None:
        """With everything that was kept of its sessions."""

    async def save_node(self, row: NodeRow) -> None:
        """Insert or replace."""

    async def add_vm(self, row: VmRow) -> None:
        """Before its creation is asked for."""

    async def set_warm(self, vm_id: str) -> None:
        """PROVISIONING to WARM."""

    async def assign(self, session: SessionRow) -> tuple[int, EndedRow | None]:
        """One transaction: WARM to ASSIGNED, the session row, a new epoch (session.epoch is ignored).

        Returns the epoch and how the last session of that name ended, if that was lately. Raises Conflict.
        """

    async def end_vms(self, reasons: Mapping[str, int], now: float) -> None:
        """One transaction: these VMs and their sessions are gone, and why (by vm id) is kept. Idempotent."""

    async def ended(self, pool: str, identifier: str, since: float) -> EndedRow | None:
        """How the last session of that name ended, if not before since."""

    def on_writable(self, tell: Callable[[bool, str], None]) -> None:
        """Call tell on this loop whenever the store becomes unable to write, and why, or able again."""

    async def check(self) -> None:
        """A write that changes nothing."""

    async def close(self) -> None:
        """After everything that is under way."""
