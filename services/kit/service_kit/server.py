"""Serving and ending: one server per process, health, reflection, draining on SIGTERM."""

import asyncio
import ctypes
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service_kit import metrics
from service_kit.address import is_local
from service_kit.health import Health
from service_kit.health_service import HealthService
from service_kit.interceptor import RpcInterceptor
from service_kit.rpc import SERVER_OPTIONS
from service_kit.rpc_metrics import RpcMetrics

# Streams in flight get this long to end by themselves after SIGTERM.
DRAIN_SECONDS = 10.0

# An ambient proxy breaks loopback channels, and a no_proxy bypasses the tunnel (measured).
PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class ListenRefused(Exception):
    """The address cannot be served: taken, or reachable from elsewhere without TLS."""


@dataclass(frozen=True)
class Serving:
    """A server that answers. addresses are as clients dial them, with the real ports."""

    server: grpc.aio.Server
    addresses: tuple[str, ...]
    health: Health


@asynccontextmanager
async def serve(
    listen: Iterable[str],
    services: Mapping[str, Callable[[grpc.aio.Server], None]],
    health: Health | None = None,
) -> AsyncIterator[Serving]:
    """Serve until the block ends, then refuse new calls and give those in flight DRAIN_SECONDS.

    services maps full names to functions that add the servicer. listen has unix:PATH or 127.0.0.1:PORT (0: any free
    one). health: what the services depend on; its owner tells it what becomes of that. Raises ListenRefused.
    """
    calls = RpcMetrics()
    server = grpc.aio.server(interceptors=(RpcInterceptor(calls),), options=SERVER_OPTIONS)
    health = health or Health()
    health.serves(services)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(health), server)
    for add in services.values():
        add(server)
    names = (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    addresses = tuple([_bind(server, address) for address in listen])
    await server.start()
    try:
        with metrics.reading(calls.read):
            yield Serving(server, addresses, health)
    finally:
        health.drain()
        await server.stop(DRAIN_SECONDS)


def _bind(server: grpc.aio.Server, address: str) -> str:
    if not is_local(address):
        raise ListenRefused(f"{address}: only loopback and unix sockets can be served without TLS")
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if _answers(path):
            raise ListenRefused(f"{address}: another process listens there")
        Path(path).unlink(missing_ok=True)  # left by a killed predecessor
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ListenRefused(f"{address}: {error}") from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def say_ready(service: str, serving: Serving) -> None:
    """Tell whoever started us where we serve."""
    print_ready(service, *serving.addresses)


def print_ready(service: str, *addresses: str) -> None:
    """The one line on stdout that whoever started us waits for; that may be nobody any more."""
    with suppress(BrokenPipeError):
        print("ready", service, *addresses, flush=True)


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run main until it returns.

    Its argument is set by the first SIGTERM or SIGINT, or when the parent has died (end of file on the descriptor named
    by SANDPOOL_LIFELINE_FD). A second signal exits at once.
    """
    for name in PROXY_VARIABLES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    _keep_memory()
    asyncio.run(_run(main))


def _keep_memory() -> None:
    """Blocks of the size of a message are used again instead of mapped and cleared anew: a third of a stream's cost."""
    with suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 8 << 20)


async def _run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    lifeline = os.environ.pop("SANDPOOL_LIFELINE_FD", None)
    if lifeline is not None:
        descriptor = int(lifeline)

        def orphaned() -> None:
            # Nothing is ever written to it: readable means that the other end is gone.
            loop.remove_reader(descriptor)
            stopping.set()

        loop.add_reader(descriptor, orphaned)
    await main(stopping)
