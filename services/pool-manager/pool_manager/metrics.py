"""What the pool-manager counts. Labels: reasons of our own, and names of pools up to a bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from pool_manager.model import STATES, Pool
from sandpool.v1 import node_pb2, pool_pb2, session_pb2
from service_kit import metrics

ACQUIRES = metrics.counter(
    "sandpool_pool_acquires_total",
    "Acquires that were answered: found, warm (a VM was there), waited (it came in time), or the reason of a refusal.",
    ("pool", "outcome"),
)
ACQUIRE_SECONDS = metrics.histogram(
    "sandpool_pool_acquire_seconds", "Time to find or assign a VM, waiting included, of those that got one.", ("pool",)
)
CREATIONS = metrics.counter(
    "sandpool_pool_creations_total",
    "VMs that were asked for: ready, or the reason of the failure.",
    ("pool", "outcome"),
)
CREATION_SECONDS = metrics.histogram(
    "sandpool_pool_creation_seconds", "Lead time of a VM: from the decision to create it until it is warm.", ("pool",)
)
ENDED = metrics.counter("sandpool_pool_vms_ended_total", "VMs that are gone, by EndReason.", ("pool", "reason"))
EXPIRY_LAG_SECONDS = metrics.histogram(
    "sandpool_pool_expiry_lag_seconds", "From the moment a VM was due until its node was asked to end it."
)
COMMIT_SECONDS = metrics.histogram("sandpool_store_commit_seconds", "Time of one durable transaction of the store.")
GROUP_SIZE = metrics.histogram(
    "sandpool_store_group_size", "Writes that shared one transaction.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
FAILED_COMMITS = metrics.counter("sandpool_store_failed_commits_total", "Transactions that the store could not write.")
VMS = metrics.derived("sandpool_pool_vms", "VMs, by pool and state.", ("pool", "state"))
SESSIONS = metrics.derived("sandpool_pool_sessions", "Live sessions.", ("pool",))
READY_TARGET = metrics.derived("sandpool_pool_ready_target", "VMs that are to be kept warm.", ("pool",))
WAITING = metrics.derived("sandpool_pool_waiting_callers", "Callers that wait for a VM.", ("pool",))
CONDITIONS = metrics.derived("sandpool_pool_condition", "1 while a pool has a condition.", ("pool", "type"))
NODES = metrics.derived("sandpool_nodes", "Nodes, by state.", ("state",))

_pools = metrics.Bounded(metrics.MAX_POOLS)
# Reasons of refusals and failures are ours or a node's: literals, of which there are fewer than this.
_outcomes = metrics.Bounded(100)


class Link(Protocol):
    """A node."""

    @property
    def node(self) -> node_pb2.Node:
        """With its state."""


class Owner(Protocol):
    """Who has pools and nodes."""

    @property
    def pools(self) -> Mapping[str, Pool]:
        """By name."""

    @property
    def links(self) -> Mapping[str, Link]:
        """By node id."""


def read(owner: Owner) -> Iterator[metrics.Reading]:
    """Pools and nodes as they are now."""
    for pool in owner.pools.values():
        yield from _read_pool(pool, _pools.of(pool.row.name))
    for state in node_pb2.NodeState.values():
        if state != node_pb2.NODE_STATE_UNSPECIFIED:
            count = sum(link.node.state == state for link in owner.links.values())
            yield metrics.Reading(NODES, count, (node_pb2.NodeState.Name(state).removeprefix("NODE_STATE_"),))


def _read_pool(pool: Pool, name: str) -> Iterator[metrics.Reading]:
    counts = dict.fromkeys(STATES, 0)
    for vm in pool.vms.values():
        counts[vm.state] += 1
    for state, count in counts.items():
        yield metrics.Reading(VMS, count, (name, state))
    yield metrics.Reading(SESSIONS, len(pool.sessions), (name,))
    yield metrics.Reading(READY_TARGET, pool.spec.ready_target, (name,))
    yield metrics.Reading(WAITING, pool.is_waiting(), (name,))
    for kind in pool_pb2.PoolConditionType.values():
        if kind != pool_pb2.POOL_CONDITION_TYPE_UNSPECIFIED:
            label = pool_pb2.PoolConditionType.Name(kind).removeprefix("POOL_CONDITION_TYPE_")
            yield metrics.Reading(CONDITIONS, kind in pool.conditions, (name, label))


def count_acquire(pool: str, outcome: str, seconds: float | None) -> None:
    """An Acquire of a pool that exists was answered; seconds: of one that got a VM."""
    label = _pools.of(pool)
    ACQUIRES.labels(label, _outcomes.of(outcome)).inc()
    if seconds is not None:
        ACQUIRE_SECONDS.labels(label).observe(seconds)


def count_creation(pool: str, outcome: str, seconds: float | None) -> None:
    """A creation has ended; seconds: of one that is ready."""
    label = _pools.of(pool)
    CREATIONS.labels(label, _outcomes.of(outcome)).inc()
    if seconds is not None:
        CREATION_SECONDS.labels(label).observe(seconds)


def count_end(pool: str, reason: session_pb2.EndReason.ValueType) -> None:
    """A VM is gone."""
    ENDED.labels(_pools.of(pool), session_pb2.EndReason.Name(reason).removeprefix("END_REASON_")).inc()


def count_commit(seconds: float, writes: int, kept: bool) -> None:
    """From the thread of the store: a transaction has ended."""
    if not kept:
        FAILED_COMMITS.inc()
        return
    COMMIT_SECONDS.observe(seconds)
    GROUP_SIZE.observe(writes)
