"""A guest agent of protocol version 1, as in old templates: `python -m tests.compat.guest_1 --unix PATH --data DIR`.

Kept as it was, with the protocol as it was (protocol_1.binpb): never made anew from protos/, and never extended. It
shares no code with the guest agent of today, runs Python code in one process, and has no files, commands, Attach or
Unseal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    Path(__file__).with_name("protocol_1.binpb").read_bytes()
).file:
    POOL.Add(_file)


def message(name: str) -> Any:
    """A class of the old protocol."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"sandpool.{name}"))


class Agent:
    """All of it."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.running, self.idle_since, self.sealed = 0, time.monotonic(), False

    async def quiesce(self, request: Any) -> Any:
        """Nothing to do."""
        return message("guest.v1.QuiesceResponse")(protocol_version=1, agent_version="0.0.1")

    async def prepare(self, request: Any) -> Any:
        """A name, and proof of randomness."""
        samples = {"python": os.urandom(32)}
        return message("guest.v1.PrepareResponse")(
            protocol_version=1, random_sample=os.urandom(32), worker_samples=samples
        )

    async def seal(self, request: Any) -> Any:
        """If idle for long enough."""
        wanted, idle = request.only_if_idle_for.ToNanoseconds() / 1e9, time.monotonic() - self.idle_since
        response = message("guest.v1.SealResponse")()
        if request.force or (not self.running and idle >= wanted):
            self.sealed = response.sealed = True
        elif not self.running:
            response.remaining.FromNanoseconds(int((wanted - idle) * 1e9))
        return response

    async def execute(self, request: Any) -> AsyncIterator[Any]:
        """The value of the last line, if it is an expression, and what was printed."""
        event = message("v1.ExecutionEvent")
        self.running += 1
        try:
            started = event()
            started.started.execution_id = request.execution_id or "issued"
            yield started
            printed, value, code = self.run(request.code.source)
            position = 0
            if printed:
                position += len(printed)
                output = event(next_position=position)
                output.output.stream, output.output.data = 1, printed
                yield output
            if value:
                position += len(value)
                result = event(next_position=position)
                result.result.result_id, result.result.mime_type, result.result.data = 1, "text/plain", value
                result.result.last = result.result.is_value = True
                yield result
            ended = event(next_position=position)
            ended.ended.exit_code = code
            yield ended
        finally:
            self.running -= 1
            self.idle_since = time.monotonic()

    def run(self, source: str) -> tuple[bytes, bytes, int]:
        """stdout, the value, the exit code."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                try:
                    value = eval(source, self.names)
                except SyntaxError:
                    value = exec(source, self.names)
            except Exception as error:
                return f"{error!r}\n".encode(), b"", 1
        return out.getvalue().encode(), b"" if value is None else repr(value).encode(), 0


class Service:
    """For grpclib: the methods that there were."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __mapping__(self) -> dict[str, Handler]:
        """By path."""
        unary, streamed = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        agent, life = self._agent, "/sandpool.guest.v1.GuestService"
        methods: dict[str, tuple[Callable[..., Any], Cardinality, str, str]] = {
            f"{life}/Quiesce": (agent.quiesce, unary, "guest.v1.QuiesceRequest", "guest.v1.QuiesceResponse"),
            f"{life}/Prepare": (agent.prepare, unary, "guest.v1.PrepareRequest", "guest.v1.PrepareResponse"),
            f"{life}/Seal": (agent.seal, unary, "guest.v1.SealRequest", "guest.v1.SealResponse"),
            "/sandpool.v1.ExecutionService/Execute": (
                agent.execute,
                streamed,
                "v1.ExecuteRequest",
                "v1.ExecutionEvent",
            ),
        }
        return {
            path: Handler(_handler(method, kind), kind, message(asked), message(answered))
            for path, (method, kind, asked, answered) in methods.items()
        }


def _handler(method: Callable[..., Any], kind: Cardinality) -> Callable[[Stream[Any, Any]], Any]:
    async def handle(stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        if kind is Cardinality.UNARY_UNARY:
            await stream.send_message(await method(request))
        else:
            async for answer in method(request):
                await stream.send_message(answer)

    return handle


async def main() -> None:
    """Until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--unix", required=True)
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    server = Server([Service(Agent())])
    await server.start(path=arguments.unix)
    print("ready guest", arguments.unix, flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
