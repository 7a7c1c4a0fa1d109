"""What the channel to a guest does by itself: nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc
from service_kit import rpc

from .attacks import ATTACKS
from .wire import Call, Connection


@pytest.mark.parametrize("name", ["refuse-stream", "go-away"])
async def test_one_call_is_one_request(name: str) -> None:
    calls = 0
    writers: list[asyncio.StreamWriter] = []

    async def handle(call: Call) -> None:
        nonlocal calls
        calls += 1
        await ATTACKS[name](call)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await Connection(reader, writer, handle).serve()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as tunnel:
        host, port = tunnel.sockets[0].getsockname()
        async with rpc.tunnel_channel("vm1", f"{host}:{port}", "token") as channel:
            stub: Any = execution_pb2_grpc.ExecutionServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.List(pb.ListExecutionsRequest(), wait_for_ready=True)
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and calls == 1
