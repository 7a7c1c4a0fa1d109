"""What every gRPC server of ours counts: calls by method and code, their time, and those in flight."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter

from service_kit import metrics

RPCS = metrics.counter(
    "sandpool_rpcs_total", "Calls that have ended, by their gRPC code.", ("rpc_service", "method", "code")
)
RPC_SECONDS = metrics.histogram(
    "sandpool_rpc_seconds", "Time of a call from its request to its end.", ("rpc_service", "method")
)
IN_FLIGHT = metrics.derived("sandpool_rpcs_in_flight", "Calls that are being served now.", ("rpc_service", "method"))


class MethodMetrics:
    """Of one method. Its children are looked up once: a call costs two increments and one observation."""

    def __init__(self, method: str) -> None:
        self.labels = tuple(method[1:].rsplit("/", 1))
        self.in_flight = 0
        self._seconds = RPC_SECONDS.labels(*self.labels)
        self._codes: dict[str, Counter] = {}

    def begin(self) -> None:
        """A call has come."""
        self.in_flight += 1

    def end(self, code: str, seconds: float) -> None:
        """It has ended. code is the name of a gRPC status code."""
        self.in_flight -= 1
        child = self._codes.get(code)
        if child is None:
            child = self._codes[code] = RPCS.labels(*self.labels, code)
        child.inc()
        self._seconds.observe(seconds)


class RpcMetrics:
    """Of one server. Only methods that it serves get here: as many as its protos have."""

    def __init__(self) -> None:
        self._methods: dict[str, MethodMetrics] = {}

    def of(self, method: str) -> MethodMetrics:
        """By the name in the request: /package.Service/Method."""
        known = self._methods.get(method)
        if known is None:
            known = self._methods[method] = MethodMetrics(method)
        return known

    def read(self) -> Iterator[metrics.Reading]:
        """Those in flight."""
        for method in self._methods.values():
            yield metrics.Reading(IN_FLIGHT, method.in_flight, method.labels)
