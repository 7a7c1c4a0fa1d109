"""Every request of every service, filled at random: answered by OK or a documented refusal, and nothing dies of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandpool.guest.v1 import guest_pb2
from sandpool.node.v1 import node_pb2 as internal_node_pb2
from sandpool.pool.v1 import pool_pb2 as internal_pool_pb2
from sandpool.v1 import execution_pb2, file_pb2, node_pb2, pool_pb2, session_pb2
from service_kit import errors, rpc

from .stack import Stack
from .strategies import Strategy, messages

pytestmark = pytest.mark.asyncio(loop_scope="package")
CODE = grpc.StatusCode
# What sandpool.v1 documents for every rpc or for single ones, less INTERNAL: a client cannot cause that.
DOCUMENTED = set(CODE) - {CODE.UNKNOWN, CODE.INTERNAL, CODE.CANCELLED, CODE.OUT_OF_RANGE}
REASON = re.compile(r"[A-Z][A-Z0-9_]{2,40}")
# The same every time; --hypothesis-seed and more examples find more.
BOUNDED = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
SECONDS = 10.0
# What grpcio's own client makes of any status that comes while it still sends (grpc issue 36066).
GRPCIO_MASK = "Internal error from Core"


def _mostly(usual: object, others: list[Any]) -> Strategy:
    """None: the field is left out."""
    return st.sampled_from([usual] * (4 * len(others)) + others)


# Few names: each that is right makes a VM or a pool.
SAFE: dict[str, Strategy] = {
    "pool": _mostly("bad", ["none", "", "Bad", "x" * 64]),
    "identifier": _mostly("fuzz-1", ["fuzz-2", "", "é", "x" * 129, "a b"]),
    "name": _mostly("fuzz", ["Fuzz", "", "x" * 64]),
    "builtin": _mostly("hostile", ["", "a/b", "x" * 64]),
    "ready_target": _mostly(0, [1, 1001, (1 << 32) - 1]),
    "node_id": _mostly("fuzz", ["", "x" * 257]),
    "agent_address": _mostly("unix:/tmp/sp-nobody", ["127.0.0.1:1", "", "not an address", "x" * 257]),
    "tunnel_address": _mostly("127.0.0.1:1", ["", "x" * 257]),
    "vm_id": _mostly("0" * 26, ["", "01m87yj9ya8h4nn15a6n54mjcr", "O" * 26, "x" * 300]),
    "template_id": _mostly("0" * 64, ["", "g" * 64]),
    # Right most of the time, so that what is behind the first check is reached too.
    "allocation": _mostly(0, [1, 2, 3, -1]),
    "expected_epoch": _mostly(None, [0, 1, (1 << 64) - 1]),
    "expected_generation": _mostly(None, [0, 1, (1 << 64) - 1]),
    "execution_id": _mostly("a", ["", "b", "a/b", "x" * 65]),
    "language": _mostly("", ["python", "ruby"]),
    "path": _mostly("a", ["", "a/b", "/mnt/data/a", "/etc", "..", "a/../..", "a\0", "x" * 256, "y/" * 3000, "é"]),
    "page_size": _mostly(0, [1, 1000, 1001, -1]),
    "page_token": _mostly("", ["a", "YQ==", "x" * 9000]),
    "vcpus": _mostly(1, [0, 32, 33, (1 << 32) - 1]),
    "memory_bytes": _mostly(512 << 20, [0, 1, 257 << 20, (1 << 64) - 1]),
    "disk_bytes": _mostly(1 << 30, [0, 1, (1 << 64) - 1]),
    "max_processes": _mostly(256, [0, 1, (1 << 32) - 1]),
    "max_sessions": _mostly(100, [0, 1, (1 << 32) - 1]),
    "container_image": _mostly(None, ["", "a"]),
    "egress": _mostly(0, [1, 2, 3, -1]),
    "seconds": _mostly(60, [0, -1, 1, 1 << 40, (1 << 63) - 1, -(1 << 63)]),
    "nanos": _mostly(0, [1, -1, 10**9, -(1 << 31)]),
    "paths": st.sampled_from(["ready_target", "cooldown", "resources.vcpus", "resources", "", "no.such"]),
}


def methods(*services: Any) -> list[MethodDescriptor]:
    """Of all of them."""
    return [method for service in services for method in service.methods]


PUBLIC = methods(
    *(pool_pb2.DESCRIPTOR.services_by_name["PoolService"], session_pb2.DESCRIPTOR.services_by_name["SessionService"]),
    execution_pb2.DESCRIPTOR.services_by_name["ExecutionService"],
    *(file_pb2.DESCRIPTOR.services_by_name["FileService"], node_pb2.DESCRIPTOR.services_by_name["NodeService"]),
)
POOL_MANAGER = methods(*internal_pool_pb2.DESCRIPTOR.services_by_name.values())
NODE_AGENT = methods(internal_node_pb2.DESCRIPTOR.services_by_name["NodeAgentService"])


def ids(method: MethodDescriptor) -> str:
    """For pytest."""
    return f"{method.containing_service.name}.{method.name}"


async def ask(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    requests: list[bytes],
    check: Callable[[grpc.aio.AioRpcError], None],
) -> None:
    """Call, take a few answers, and look at how it ended."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.server_streaming:
            stream: Any
            if method.client_streaming:
                stream = channel.stream_stream(path)(iter(requests), timeout=SECONDS)
            else:
                stream = channel.unary_stream(path)(requests[0], timeout=SECONDS)
            async for _ in stream:
                break  # Watch does not end
            stream.cancel()
        elif method.client_streaming:
            await channel.stream_unary(path)(iter(requests), timeout=SECONDS)
        else:
            await channel.unary_unary(path)(requests[0], timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        check(error)


def check_documented(error: grpc.aio.AioRpcError) -> None:
    """A documented status with our ErrorInfo."""
    if error.details() == GRPCIO_MASK:
        return
    assert error.code() in DOCUMENTED, (error.code(), error.details())
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    assert status is not None, f"no details: {error.code()} {error.details()}"
    assert any(detail.Unpack(info) for detail in status.details), status
    assert info.domain == errors.DOMAIN and REASON.fullmatch(info.reason), info


def filled(method: MethodDescriptor) -> Strategy:
    """A list with one request, or of several for a stream."""
    one = messages(method.input_type, SAFE).map(lambda message: message.SerializeToString())
    return st.lists(one, min_size=1, max_size=4) if method.client_streaming else st.lists(one, min_size=1, max_size=1)


anything = st.lists(st.binary(max_size=200), min_size=1, max_size=1)


def channels(stack: Stack) -> dict[str, str]:
    """Addresses by service."""
    return {name: service.address for name, service in stack.services.items()}


def cases() -> Iterator[Any]:
    """Each method with the service that serves it."""
    for service, found in (("scheduler", PUBLIC), ("pool-manager", POOL_MANAGER), ("node-agent", NODE_AGENT)):
        for method in found:
            yield pytest.param(service, method, id=f"{service}-{ids(method)}")


@pytest.mark.parametrize(("service", "method"), list(cases()))
async def test_every_request_is_answered_as_documented(stack: Stack, service: str, method: MethodDescriptor) -> None:
    async with rpc.open_channel(channels(stack)[service]) as channel:

        @BOUNDED
        @given(filled(method) | anything)
        def fuzz(requests: list[bytes]) -> None:
            runner.run(requests)

        runner = _Runner(channel, method, check_documented)
        await asyncio.to_thread(fuzz)


class _Runner:
    """Hypothesis is synchronous: it has a thread, and the loop does the calls."""

    def __init__(
        self, channel: grpc.aio.Channel, method: MethodDescriptor, check: Callable[[grpc.aio.AioRpcError], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel, self._method, self._check = channel, method, check

    def run(self, requests: list[bytes]) -> None:
        """One example."""
        asyncio.run_coroutine_threadsafe(ask(self._channel, self._method, requests, self._check), self._loop).result()


@pytest.mark.parametrize("service", ["scheduler", "pool-manager", "node-agent", "tunnel"])
async def test_bytes_at_a_listener(stack: Stack, service: str) -> None:
    address = stack.tunnel_address if service == "tunnel" else stack.services[service].address
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    async def send(data: bytes) -> None:
        if address.startswith("unix:"):
            _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        writer.close()

    loop = asyncio.get_running_loop()

    @BOUNDED
    @given(st.binary(max_size=300), st.booleans())
    def fuzz(data: bytes, proper: bool) -> None:
        asyncio.run_coroutine_threadsafe(send(preface * proper + data), loop).result()

    await asyncio.to_thread(fuzz)


GUEST = methods(
    *(
        execution_pb2.DESCRIPTOR.services_by_name["ExecutionService"],
        file_pb2.DESCRIPTOR.services_by_name["FileService"],
    ),
    guest_pb2.DESCRIPTOR.services_by_name["GuestService"],
)
# It runs on this host: programs that do nothing, and paths that would be nobody's.
HARMLESS: dict[str, Strategy] = SAFE | {
    "source": _mostly("a", ["", "b/c", "1 +", "x" * 300]),
    "destination": _mostly("b", ["", "../..", "/no/where", "a\0"]),
    "path": _mostly("a", ["", "b/c", "/mnt/data/a", "/no/where", "../..", "a\0", "x" * 256, "y/" * 3000, "é"]),
    "cwd": _mostly("", ["/no/where", "a\0", "x" * 5000]),
    "shell": _mostly("true", ["", "\0", "exit 3"]),
    "values": _mostly("true", ["", "\0", "/no/such/program"]),
    "force": st.just(False),
    "only_if_idle_for": st.none(),
}


def check_guest(error: grpc.aio.AioRpcError) -> None:
    """A refusal with a reason, by the trailer that the scheduler looks for. grpcio's mask: see above."""
    if error.details() == GRPCIO_MASK:
        return
    reason = dict(error.trailing_metadata() or ()).get("sandpool-reason", "")
    assert error.code() in DOCUMENTED and REASON.fullmatch(str(reason)), (error.code(), error.details())


@pytest.mark.parametrize("method", [one for one in GUEST if one.name not in ("Seal", "Quiesce")], ids=ids)
async def test_the_guest_agent_answers_every_request(guest: grpc.aio.Channel, method: MethodDescriptor) -> None:
    one = messages(method.input_type, HARMLESS).map(lambda message: message.SerializeToString())
    runner = _Runner(guest, method, check_guest)
    fuzz = BOUNDED(given(st.lists(one, min_size=1, max_size=3) | anything)(runner.run))
    await asyncio.to_thread(fuzz)
