"""A gRPC server that answers what it gets, or streams as much as it is told: `python -m bench.echo unix:PATH`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from sandpool.v1.execution_pb2 import OutputChunk
from service_kit.rpc import SERVER_OPTIONS

# The largest chunk of output.
CHUNK_BYTES = 256 << 10


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _stream(request: bytes, context: Any) -> AsyncIterator[OutputChunk]:
    data = bytes(CHUNK_BYTES)
    for offset in range(0, int(request), CHUNK_BYTES):
        yield OutputChunk(offset=offset, data=data)


async def _main() -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handler = grpc.method_handlers_generic_handler(
        "bench.Echo",
        {
            "Echo": grpc.unary_unary_rpc_method_handler(_echo),
            "Stream": grpc.unary_stream_rpc_method_handler(_stream, response_serializer=OutputChunk.SerializeToString),
        },
    )
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(sys.argv[1])
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main())
