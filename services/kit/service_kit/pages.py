"""Pages for what looks after a service: /metrics, /livez and /readyz by plain HTTP. GET only, one per connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service_kit import metrics
from service_kit.address import is_local
from service_kit.health import Health

MAX_CONNECTIONS = 16
HEADER_BYTES = 8192
# To send the request, and again to take the answer.
CLIENT_SECONDS = 5.0
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class PagesRefused(Exception):
    """The address cannot be served: taken, or reachable from elsewhere without TLS."""


@dataclass(frozen=True)
class Answer:
    """What a page is now."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"


Page = Callable[[], Awaitable[Answer]]


@asynccontextmanager
async def serve_pages(listen: str, pages: Mapping[str, Page]) -> AsyncIterator[str]:
    """Serve until the block ends; the address, with its real port. Raises PagesRefused.

    listen is unix:PATH or loopback with a port (0: any free one).
    """
    if not is_local(listen):
        raise PagesRefused(f"{listen}: only loopback and unix sockets can be served without TLS")
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(_talk(reader, writer, pages))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    path = Path(listen.removeprefix("unix:")) if listen.startswith("unix:") else None
    try:
        if path is not None:
            path.unlink(missing_ok=True)  # left by a killed predecessor
            server = await asyncio.start_unix_server(connected, path, limit=HEADER_BYTES)
        else:
            host, _, port = listen.rpartition(":")
            server = await asyncio.start_server(connected, host.strip("[]"), int(port), limit=HEADER_BYTES)
    except OSError as error:
        raise PagesRefused(f"{listen}: {error.strerror or error}") from error
    try:
        yield listen if path is not None else f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if path is not None:
            path.unlink(missing_ok=True)


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Mapping[str, Page]) -> None:
    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            header = await reader.readuntil(b"\r\n\r\n")
        answer = await _answer(header.split(b"\r\n", 1)[0].decode("latin-1").split(" "), pages)
        async with asyncio.timeout(CLIENT_SECONDS):
            writer.write(_encode(answer))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
        return
    finally:
        writer.transport.abort()


async def _answer(request: list[str], pages: Mapping[str, Page]) -> Answer:
    if len(request) != 3 or not request[2].startswith("HTTP/1."):
        return Answer(b"", 400)
    if request[0] != "GET":
        return Answer(b"", 405)
    page = pages.get(request[1].partition("?")[0])
    return await page() if page is not None else Answer(b"", 404)


def _encode(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + answer.body


@asynccontextmanager
async def observed(listen: str, service: str, health: Health) -> AsyncIterator[str]:
    """The pages of one service while the block runs; listen "" serves none. Raises PagesRefused."""

    async def scrape() -> Answer:
        return Answer(metrics.render(service), content_type=metrics.CONTENT_TYPE)

    async def live() -> Answer:
        return readiness(service, True, [])

    async def ready() -> Answer:
        why = [{"name": it.name, "ready": it.ready, "detail": it.detail} for it in health.dependencies]
        if health.draining:
            why.append({"name": "process", "ready": False, "detail": "it is being ended"})
        return readiness(service, health.ready, why)

    if not listen:
        yield ""
        return
    async with serve_pages(listen, {"/metrics": scrape, "/livez": live, "/readyz": ready}) as address:
        yield address


def readiness(service: str, ready: bool, dependencies: list[dict[str, object]]) -> Answer:
    """The body of /readyz: 200 or 503, with what is needed and what is missing of it."""
    body = {"service": service, "ready": ready, "dependencies": dependencies}
    return Answer(json.dumps(body, indent=1).encode() + b"\n", 200 if ready else 503)


async def fetch(address: str, path: str) -> Answer:
    """A page of another service. Raises OSError, TimeoutError."""
    async with asyncio.timeout(CLIENT_SECONDS):
        if address.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    words = head.split(b" ", 2)
    if len(words) < 3 or not words[1].isdigit():
        raise OSError(f"{address} speaks no HTTP")
    return Answer(body, int(words[1]))
