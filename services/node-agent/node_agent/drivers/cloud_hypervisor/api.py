"""Cloud Hypervisor's REST API over its unix socket, as far as a VM's life needs it.

Its server knows little of HTTP: a body needs Content-Length, connections are kept for ever, the reason phrase is empty,
a request of more than 51,200 bytes is refused, and a client that shuts down its half loses the answer.
"""

import asyncio
import json
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

MAX_REQUEST_BYTES = 51_200
MAX_HEAD_BYTES = 8 << 10
# vm.info is a few KiB; a VMM that answers more is not well, and a guest may have taken it over.
MAX_BODY_BYTES = 1 << 20
MAX_MESSAGE_CHARACTERS = 500
# Every call but a snapshot takes milliseconds; behind one, all wait: the server has one thread.
CALL_SECONDS = 60.0
_STATUS = re.compile(rb"HTTP/1\.\d +(\d{3})(?: |$)")


class ApiError(Exception):
    """The VMM refused (status is its HTTP status), or did not answer as it should (status 0)."""

    def __init__(self, endpoint: str, status: int, message: str) -> None:
        super().__init__(f"{endpoint}: {message}")
        self.status = status


class Api:
    """One connection. Calls are made one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._received = b""

    @classmethod
    async def connect(cls, path: str) -> "Api":
        """Raises OSError."""
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, path)
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def get(self, endpoint: str, seconds: float = CALL_SECONDS) -> Any:
        """Ask. Raises ApiError."""
        return await self._call(endpoint, _request("GET", endpoint, None), (), seconds)

    async def put(
        self, endpoint: str, body: object = None, descriptors: Sequence[int] = (), seconds: float = CALL_SECONDS
    ) -> Any:
        """Do; descriptors are handed over with the request. Raises ApiError."""
        return await self._call(endpoint, _request("PUT", endpoint, body), descriptors, seconds)

    async def _call(self, endpoint: str, request: bytes, descriptors: Sequence[int], seconds: float) -> Any:
        try:
            async with asyncio.timeout(seconds):
                await self._send(request, descriptors)
                status, body = await self._receive(endpoint)
        except TimeoutError as error:
            raise ApiError(endpoint, 0, f"no answer within {seconds:g} s") from error
        except OSError as error:
            raise ApiError(endpoint, 0, f"the VMM is gone: {error}") from error
        if status >= 300:
            raise ApiError(endpoint, status, _message(status, body))
        try:
            return json.loads(body) if body else None
        except (ValueError, RecursionError) as error:
            raise ApiError(endpoint, 0, "the answer is no JSON") from error

    async def _send(self, request: bytes, descriptors: Sequence[int]) -> None:
        # They travel with the first byte; nothing else is under way, so that a short request never waits.
        sent = socket.send_fds(self._socket, [request], descriptors) if descriptors else 0
        if sent < len(request):
            await self._loop.sock_sendall(self._socket, request[sent:])

    async def _receive(self, endpoint: str) -> tuple[int, bytes]:
        while b"\r\n\r\n" not in self._received:
            await self._more(endpoint, MAX_HEAD_BYTES)
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status, length = _read_head(endpoint, head)
        while len(self._received) < length:
            await self._more(endpoint, MAX_BODY_BYTES)
        body, self._received = self._received[:length], self._received[length:]
        return status, body

    async def _more(self, endpoint: str, limit: int) -> None:
        if len(self._received) > limit:
            raise ApiError(endpoint, 0, "the answer is too long")
        data = await self._loop.sock_recv(self._socket, 65536)
        if not data:
            raise ApiError(endpoint, 0, "the VMM is gone")
        self._received += data


def _request(method: str, endpoint: str, body: object) -> bytes:
    """Raises ApiError. An endpoint that takes no body refuses even an empty one."""
    head = f"{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    content = json.dumps(body).encode()
    if len(content) > MAX_REQUEST_BYTES:
        raise ApiError(endpoint, 0, "the request is too long")
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def _read_head(endpoint: str, head: bytes) -> tuple[int, int]:
    """Status and length of the body. Raises ApiError."""
    first, *lines = head.split(b"\r\n")
    found = _STATUS.match(first)
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = fields.get(b"content-length", b"0")
    if found is None or not length.isdigit():
        raise ApiError(endpoint, 0, "the answer is no HTTP")
    if len(length) > 9 or int(length) > MAX_BODY_BYTES:
        raise ApiError(endpoint, 0, "the answer is too long")
    return int(found[1]), int(length)


def _message(status: int, body: bytes) -> str:
    """Of an error: a chain of causes from the API, something close to JSON from the HTTP server below it."""
    text = body.decode(errors="replace")
    with suppress(ValueError, RecursionError):
        said = json.loads(text)
        if isinstance(said, list):
            text = ": ".join(map(str, said))
    return f"{status} {' '.join(text.split())}"[:MAX_MESSAGE_CHARACTERS].strip()
