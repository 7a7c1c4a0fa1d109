"""What the scheduler counts. Labels never hold what a client or a guest has said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from sandpool.v1 import execution_pb2 as pb
from service_kit import metrics

LOOKUPS = metrics.counter(
    "sandpool_scheduler_route_lookups_total", "Looks for a known route, by result: hit or miss.", ("result",)
)
ACQUIRE_SECONDS = metrics.histogram(
    "sandpool_scheduler_acquire_seconds", "Time to ask the pool-manager for a session, by outcome.", ("outcome",)
)
CONNECT_SECONDS = metrics.histogram(
    "sandpool_scheduler_connect_seconds", "Time to open a tunnel to a VM, by outcome.", ("outcome",)
)
VIOLATIONS = metrics.counter(
    "sandpool_scheduler_guest_violations_total", "Guests that broke the protocol, by the rule.", ("rule",)
)
STREAMED = metrics.counter(
    "sandpool_scheduler_streamed_bytes_total",
    "Output, results and files that passed, by direction: to_client or to_guest.",
    ("direction",),
)
ENDED = metrics.counter(
    "sandpool_scheduler_executions_ended_total", "Terminal events sent to clients, by outcome.", ("outcome",)
)
ROUTES = metrics.derived("sandpool_scheduler_routes", "Known routes to sessions.")
CHANNELS = metrics.derived("sandpool_scheduler_channels", "Channels to VMs that are kept or in use.")

HIT, MISS = LOOKUPS.labels("hit"), LOOKUPS.labels("miss")
ACQUIRED, NOT_ACQUIRED = ACQUIRE_SECONDS.labels("ok"), ACQUIRE_SECONDS.labels("failed")
CONNECTED, NOT_CONNECTED = CONNECT_SECONDS.labels("ok"), CONNECT_SECONDS.labels("failed")
TO_CLIENT, TO_GUEST = STREAMED.labels("to_client"), STREAMED.labels("to_guest")
_OUTCOMES = {
    "exit_zero": ENDED.labels("exit_zero"),
    "exit_nonzero": ENDED.labels("exit_nonzero"),
    "signal": ENDED.labels("signal"),
    **{
        name: ENDED.labels(name.removeprefix("KILL_REASON_").lower())
        for name in map(pb.KillReason.Name, pb.KillReason.values())
        if name != "KILL_REASON_UNSPECIFIED"
    },
}


# The rules are literals of our own code; whoever writes one that is not does not make series without end.
_RULES = metrics.Bounded(100)


class Keeper(Protocol):
    """Who keeps routes."""

    @property
    def known(self) -> int:
        """Routes in the cache."""

    @property
    def channels(self) -> int:
        """Channels that are not closed."""


def read(routes: Keeper) -> Iterator[metrics.Reading]:
    """What routes there are now."""
    yield metrics.Reading(ROUTES, routes.known)
    yield metrics.Reading(CHANNELS, routes.channels)


def count_violation(rule: str) -> None:
    """A guest broke a rule."""
    VIOLATIONS.labels(_RULES.of(rule)).inc()


def count_event(event: pb.ExecutionEvent) -> None:
    """An event that goes to a client, checked."""
    kind = event.WhichOneof("event")
    if kind == "output":
        TO_CLIENT.inc(len(event.output.data))
    elif kind == "result":
        TO_CLIENT.inc(len(event.result.data))
    elif kind == "ended":
        _OUTCOMES[_outcome(event.ended)].inc()


def _outcome(ended: pb.ExecutionEnded) -> str:
    kind = ended.WhichOneof("outcome")
    if kind == "killed":
        return pb.KillReason.Name(ended.killed)
    if kind == "signal":
        return "signal"
    return "exit_zero" if ended.exit_code == 0 else "exit_nonzero"
