"""Metrics of this process, in Prometheus' format: fixed label sets, and gauges that are asked of their owner.

What a scrape shows of a state is read from whoever owns it, at that moment; only what happens is counted as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Of the label that every sample has: which process it is about.
SERVICE_LABEL = "service"

# From a warm call to a boot under emulation.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Pools are made by operators, without a limit; series are not.
MAX_POOLS = 100
OTHER = "other"

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)


def counter(name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
    """Of what happens. The name ends in _total."""
    return Counter(name, documentation, labels, registry=REGISTRY)


def histogram(
    name: str, documentation: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = SECONDS
) -> Histogram:
    """Of durations, or of sizes with buckets of their own."""
    return Histogram(name, documentation, labels, buckets=buckets, registry=REGISTRY)


@dataclass(frozen=True)
class Derived:
    """A gauge, or a counter if its name ends in _total, whose value its owner has."""

    name: str
    documentation: str
    labels: tuple[str, ...] = ()

    def family(self, values: Mapping[tuple[str, ...], float]) -> Metric:
        """As Prometheus takes it."""
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        family = kind(self.name, self.documentation, labels=self.labels)
        for labels, value in values.items():
            family.add_metric(labels, value)
        return family


@dataclass(frozen=True)
class Reading:
    """A value now. Readings with the same labels are added up."""

    of: Derived
    value: float
    labels: tuple[str, ...] = ()


Source = Callable[[], Iterable[Reading]]


@dataclass(eq=False)
class _Derivations(Collector):
    """Every derived metric of this process, and those who know their values."""

    metrics: dict[str, Derived] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def collect(self) -> Iterator[Metric]:
        """Ask every source."""
        values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in self.metrics}
        for source in self.sources:
            for reading in source():
                known = values[reading.of.name]
                known[reading.labels] = known.get(reading.labels, 0.0) + reading.value
        return (self.metrics[name].family(found) for name, found in values.items())


_derivations = _Derivations()
REGISTRY.register(_derivations)


def derived(name: str, documentation: str, labels: tuple[str, ...] = ()) -> Derived:
    """Declare a metric that is read when somebody looks."""
    return _derivations.metrics.setdefault(name, Derived(name, documentation, labels))


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """While the block runs, source is asked at every scrape, on the thread of the scrape."""
    _derivations.sources.append(source)
    try:
        yield
    finally:
        _derivations.sources.remove(source)


class Bounded:
    """Label values that are not an enum: the first limit of them by name, all others as "other"."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: set[str] = set()

    def of(self, name: str) -> str:
        """The label for name."""
        if name not in self._names:
            if len(self._names) >= self._limit:
                return OTHER
            self._names.add(name)
        return name


class _Labelled(Collector):
    """The registry with the service's name on every sample."""

    def __init__(self, service: str) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Copies: samples of a registry are its own."""
        for metric in REGISTRY.collect():
            labelled = Metric(metric.name, metric.documentation, metric.type)
            labelled.samples = [
                sample._replace(labels={SERVICE_LABEL: self._service, **sample.labels}) for sample in metric.samples
            ]
            yield labelled


def render(service: str) -> bytes:
    """Everything that this process has to say, as CONTENT_TYPE."""
    return generate_latest(_Labelled(service))
