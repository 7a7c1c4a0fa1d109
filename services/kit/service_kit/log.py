"""JSON log lines on stderr, with trace and span ids. Never guest output, code, tokens or values of env."""

import logging
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from opentelemetry import trace


class _Stderr:
    """Without a buffer, for as long as it takes what is written: a full disk ends the log and not the service."""

    def write(self, text: str) -> int:
        """Or not."""
        with suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held."""


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def configure(service: str, level: int = logging.INFO) -> None:
    """Set up logging for the process. service is in every line."""

    def add_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"service": service, **event}

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            add_service,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    # A client that goes away while a message is on its way to it: its rpc's own line says CANCELLED.
    grpc_log = logging.getLogger("grpc._cython.cygrpc")
    grpc_log.addFilter(lambda record: not record.getMessage().startswith("ExecuteBatchError"))
    # Bytes that are no message: whoever receives them knows, and says so in a line of its own.
    common_log = logging.getLogger("grpc._common")
    common_log.addFilter(lambda record: record.getMessage() != "Exception deserializing message!")
