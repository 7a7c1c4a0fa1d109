"""The asynchronous client: `async with AsyncClient() as client`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import grpc

from sandpool.errors import mapped
from sandpool.session import AsyncSession
from sandpool.v1 import (
    execution_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

DEFAULT_ADDRESS = "127.0.0.1:7280"
ADDRESS_VARIABLE = "SANDPOOL_ADDRESS"
MAX_MESSAGE_BYTES = 16 << 20
# A chunk of output or of a file is one frame: with the default of 16 KiB it is eight, each handled on its own.
MAX_FRAME_BYTES = 1 << 20


class AsyncClient:
    """A connection to sandpool at host:port or unix:PATH. Connects on first use; not bound to a task."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
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
        self.pools = Pools(self.channel)

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

    async def sessions(self, pool: str) -> AsyncIterator[session_pb2.Session]:
        """Every live session of a pool, by identifier."""
        token = ""
        while True:
            request = session_pb2.ListSessionsRequest(pool=pool, page_size=1000, page_token=token)
            with mapped():
                response = await self.sessions_stub.List(request)
            for session in response.sessions:
                yield session
            token = response.next_page_token
            if not token:
                return

    async def nodes(self) -> AsyncIterator[node_pb2.Node]:
        """Every node, by id."""
        token = ""
        while True:
            with mapped():
                response = await self._nodes.List(node_pb2.ListNodesRequest(page_size=1000, page_token=token))
            for node in response.nodes:
                yield node
            token = response.next_page_token
            if not token:
                return


class Pools:
    """Pools and their settings (sandpool.v1.pool_pb2.PoolSpec). Every call raises SandpoolError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: pool_pb2_grpc.PoolServiceAsyncStub = pool_pb2_grpc.PoolServiceStub(channel)

    async def create(self, name: str, spec: pool_pb2.PoolSpec | None = None) -> pool_pb2.Pool:
        """Idempotent with identical settings."""
        with mapped():
            return (await self._stub.Create(pool_pb2.CreatePoolRequest(name=name, spec=spec))).pool

    async def get(self, name: str) -> pool_pb2.Pool:
        """One pool."""
        with mapped():
            return (await self._stub.Get(pool_pb2.GetPoolRequest(name=name))).pool

    async def list(self) -> AsyncIterator[pool_pb2.Pool]:
        """Every pool, by name."""
        token = ""
        while True:
            with mapped():
                response = await self._stub.List(pool_pb2.ListPoolsRequest(page_size=1000, page_token=token))
            for pool in response.pools:
                yield pool
            token = response.next_page_token
            if not token:
                return

    async def update(self, name: str, spec: pool_pb2.PoolSpec, *fields: str) -> pool_pb2.Pool:
        """Change the named fields, for example "ready_target" or "resources.memory_bytes"."""
        request = pool_pb2.UpdatePoolRequest(name=name, spec=spec)
        request.update_mask.paths.extend(fields)
        with mapped():
            return (await self._stub.Update(request)).pool

    async def delete(self, name: str, *, force: bool = False) -> None:
        """No new sessions from now on; gone with the last VM. force ends live sessions."""
        with mapped():
            await self._stub.Delete(pool_pb2.DeletePoolRequest(name=name, force=force))
