"""Spans across the services (W3C trace context in metadata) and the stages of one rpc."""

import contextvars
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


@dataclass
class RpcRecord:
    """What the canonical line of one rpc says: seconds per stage, and ids. entered: when its handler was."""

    stages: dict[str, float] = field(default_factory=dict)
    annotations: dict[str, str | int | bool] = field(default_factory=dict)
    entered: float = field(default_factory=time.perf_counter)


# Finds its provider when that is configured.
tracer = trace.get_tracer("sandpool")
_current: contextvars.ContextVar[RpcRecord | None] = contextvars.ContextVar("rpc", default=None)


def configure(service: str) -> None:
    """Set up tracing for the process; spans are exported by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT is set."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # an extra

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def begin() -> RpcRecord:
    """Start the record of the rpc that this task serves."""
    record = RpcRecord()
    _current.set(record)
    return record


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the time of the block to the stage name of the current rpc, and make it a span."""
    record = _current.get()
    begun = time.perf_counter()
    try:
        with tracer.start_as_current_span(name):
            yield
    finally:
        if record is not None:
            record.stages[name] = record.stages.get(name, 0.0) + time.perf_counter() - begun


def add_stage(name: str, seconds: float) -> None:
    """Add time that was measured elsewhere: a block that holds a yield cannot be a stage."""
    record = _current.get()
    if record is not None:
        record.stages[name] = record.stages.get(name, 0.0) + seconds


def add_first_stage(name: str) -> None:
    """Add the time since the handler was entered: what was done before the first other stage."""
    record = _current.get()
    if record is not None:
        add_stage(name, time.perf_counter() - record.entered)


def add_span(name: str, seconds: float, parent: trace.Span) -> None:
    """A span that ends now and was measured elsewhere: in a guest, which exports nothing itself."""
    end = time.time_ns()
    context = trace.set_span_in_context(parent)
    span = tracer.start_span(name, context, start_time=end - int(seconds * 1e9))
    span.end(end)


def annotate(**values: str | int | bool) -> None:
    """Add ids (never contents) to the current rpc's canonical line."""
    record = _current.get()
    if record is not None:
        record.annotations.update(values)


def outgoing() -> tuple[tuple[str, str], ...]:
    """Metadata that carries the current trace to the next service or into the guest."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


def incoming(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """The trace context in an rpc's metadata."""
    carrier: Mapping[str, str] = {key: value for key, value in metadata if isinstance(value, str)}
    return propagate.extract(carrier)
