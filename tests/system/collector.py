"""An OTLP collector that keeps what it is sent: the real protocol, as the services export it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Span:
    """One of them, and which service it is from."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Threads of a gRPC server write, tests wait."""

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[Span] = []
        self.raw = b""
        self._changed = threading.Condition()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with self._changed:
            self.raw += request.SerializeToString()
            for group in request.resource_spans:
                (service,) = (it.value.string_value for it in group.resource.attributes if it.key == "service.name")
                self.spans += [
                    Span(service, it.name, it.trace_id.hex(), it.span_id.hex(), it.parent_span_id.hex())
                    for scope in group.scope_spans
                    for it in scope.spans
                ]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, found: Callable[[list[Span]], bool], seconds: float = 30) -> None:
        """Until the spans are as wanted."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: found(self.spans), seconds)
            assert arrived, {(it.service, it.name) for it in self.spans}


@contextmanager
def collecting() -> Iterator[Collector]:
    """While the block runs."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
