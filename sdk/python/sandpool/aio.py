"""The asynchronous client: `async with AsyncClient() as client`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import grpc

from sandpool.calls import call, pages
from sandpool.history import History
from sandpool.pools import Pools
from sandpool.session import AsyncSession
from sandpool.v1 import execution_pb2_grpc, node_pb2, node_pb2_grpc, session_pb2, session_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:7280"
ADDRESS_VARIABLE = "SANDPOOL_ADDRESS"
MAX_MESSAGE_BYTES = 16 << 20
# A chunk of output or of a file is one frame: with the default of 16 KiB it is eight, each handled on its own.
MAX_FRAME_BYTES = 1 << 20
# Of a call that neither runs code, nor moves a file, nor waits for a VM.
TIMEOUT_SECONDS = 60.0


class AsyncClient:
    """A connection to sandpool at host:port or unix:PATH. Connects on first use; not bound to a task.

    timeout: seconds for each try of a call about pools, sessions, nodes, events and names of files; None: no bound.
    Executions have one of their own, and transfers take as long as they take.
    """

    def __init__(self, address: str | None = None, *, timeout: float | None = TIMEOUT_SECONDS) -> None:
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        self.timeout = timeout
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.http2.max_frame_size", MAX_FRAME_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        if self.address.startswith(("127.", "localhost:", "[::1]", "unix:")):
            options.append(("grpc.enable_http_proxy", 0))
        self.channel = grpc.aio.insecure_channel(self.address, options=options)
        self.executions: execution_pb2_grpc.ExecutionServiceAsyncStub
        self.executions = execution_pb2_grpc.ExecutionServiceStub(self.channel)
        self.sessions_stub: session_pb2_grpc.SessionServiceAsyncStub
        self.sessions_stub = session_pb2_grpc.SessionServiceStub(self.channel)
        self._nodes: node_pb2_grpc.NodeServiceAsyncStub = node_pb2_grpc.NodeServiceStub(self.channel)
        self.pools = Pools(self.channel, timeout)
        self.history = History(self.channel, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Sessions go on."""
        await self.channel.close()

    def session(self, pool: str = "python", identifier: str | None = None, *, pin: bool = True) -> AsyncSession:
        """A session by name; a random one without. pin=False: calls go on in a fresh session when it has ended."""
        return AsyncSession(self, pool, identifier or f"s-{os.urandom(8).hex()}", pin=pin)

    async def sessions(self, pool: str = "python") -> AsyncIterator[session_pb2.Session]:
        """Every live session of a pool, by identifier."""

        async def fetch(token: str) -> session_pb2.ListSessionsResponse:
            request = session_pb2.ListSessionsRequest(pool=pool, page_size=1000, page_token=token)
            return await call(self.sessions_stub.List, request, self.timeout)

        async for session in pages(fetch, "sessions"):
            yield session

    async def nodes(self) -> AsyncIterator[node_pb2.Node]:
        """Every node, by id."""

        async def fetch(token: str) -> node_pb2.ListNodesResponse:
            request = node_pb2.ListNodesRequest(page_size=1000, page_token=token)
            return await call(self._nodes.List, request, self.timeout)

        async for node in pages(fetch, "nodes"):
            yield node
