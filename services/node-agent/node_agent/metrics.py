"""What the node agent counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import Histogram

from node_agent.ledger import Amount
from node_agent.vm_record import VmRecord
from sandpool.node.v1 import node_pb2 as pb
from service_kit import metrics

CLONE_SECONDS = metrics.histogram("sandpool_node_clone_seconds", "Time to clone a template, by outcome.", ("outcome",))
PREPARE_SECONDS = metrics.histogram(
    "sandpool_node_prepare_seconds", "Time to make a clone unique and prove it, by outcome.", ("outcome",)
)
DESTROY_SECONDS = metrics.histogram(
    "sandpool_node_destroy_seconds", "Time until the end of a VM was confirmed, by outcome.", ("outcome",)
)
BUILD_SECONDS = metrics.histogram(
    "sandpool_node_template_build_seconds",
    "Time to build a template that was not there, by outcome.",
    ("outcome",),
    (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0),
)
TUNNEL_RESTARTS = metrics.counter("sandpool_node_tunnel_restarts_total", "Tunnels that died and were started again.")
VMS = metrics.derived("sandpool_node_vms", "VMs that exist here, by state.", ("state",))
RESERVED = metrics.derived("sandpool_node_reserved", "What is lent to VMs; the resource names its unit.", ("resource",))
CAPACITY = metrics.derived("sandpool_node_capacity", "What can be lent at most.", ("resource",))
WATCHERS = metrics.derived("sandpool_node_watchers", "Pool-managers that watch this node.")

STATES = (pb.VM_STATE_PROVISIONING, pb.VM_STATE_READY, pb.VM_STATE_SEALED)
OK, FAILED = "ok", "failed"


class Census(Protocol):
    """Who knows every VM."""

    def living(self) -> Iterable[VmRecord]:
        """Those that exist."""


class Lender(Protocol):
    """Who knows what is lent."""

    @property
    def capacity(self) -> Amount:
        """At most."""

    @property
    def reserved(self) -> Amount:
        """Now."""


class Audience(Protocol):
    """Who knows the watchers."""

    @property
    def watchers(self) -> int:
        """Open streams."""


def read(census: Census, ledger: Lender, audience: Audience) -> Iterator[metrics.Reading]:
    """The node as it is now."""
    states = Counter(record.state for record in census.living())
    for state in STATES:
        yield metrics.Reading(VMS, states[state], (pb.VmState.Name(state).removeprefix("VM_STATE_"),))
    for of, amount in ((RESERVED, ledger.reserved), (CAPACITY, ledger.capacity)):
        yield metrics.Reading(of, amount.cpu_millis / 1000, ("cpus",))
        yield metrics.Reading(of, amount.memory_bytes, ("memory_bytes",))
        yield metrics.Reading(of, amount.disk_bytes, ("disk_bytes",))
    yield metrics.Reading(WATCHERS, audience.watchers)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe the time of the block, as failed if it raises."""
    begun, outcome = time.perf_counter(), FAILED
    try:
        yield
        outcome = OK
    finally:
        histogram.labels(outcome).observe(time.perf_counter() - begun)
