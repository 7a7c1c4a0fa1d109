"""A gRPC server that answers what it gets: `python -m bench.echo unix:PATH`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from service_kit.rpc import SERVER_OPTIONS


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _main() -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handler = grpc.method_handlers_generic_handler("bench.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(_echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(sys.argv[1])
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main())
