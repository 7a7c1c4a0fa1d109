"""The API client against a server that answers on a unix socket with the bytes that Cloud Hypervisor sends."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node_agent.drivers.cloud_hypervisor.api import MAX_BODY_BYTES, MAX_REQUEST_BYTES, Api, ApiError

HEAD = b"Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
PING = b'{"build_version":"v53.0","version":"53.0.0","pid":7,"features":["kvm"]}'
NOTHING = b"HTTP/1.1 204 \r\n" + HEAD + b"\r\n"


def ok(body: bytes, status: bytes = b"200") -> bytes:
    length = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return b"HTTP/1.1 " + status + b" \r\n" + HEAD + length + body


class Server:
    """Gives its answers one by one, to whatever is asked, and remembers that."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self.requests: list[tuple[str, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for answer in self._answers:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *fields = head.decode().strip().split("\r\n")
                length = [int(field.split(":")[1]) for field in fields if field.startswith("Content-Length:")]
                self.requests.append((first, await reader.readexactly(length[0]) if length else b""))
                for at in range(0, len(answer), 1000):
                    writer.write(answer[at : at + 1000])
                    await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        writer.close()


@asynccontextmanager
async def conversation(*answers: bytes) -> AsyncIterator[tuple[Api, Server]]:
    server = Server(list(answers))
    with tempfile.TemporaryDirectory() as directory:
        listening = await asyncio.start_unix_server(server.serve, f"{directory}/api")
        async with await Api.connect(f"{directory}/api") as api:
            yield api, server
        listening.close()
        await listening.wait_closed()


async def test_calls_of_one_connection() -> None:
    async with conversation(ok(PING), NOTHING, NOTHING) as (api, server):
        assert (await api.get("vmm.ping"))["pid"] == 7
        assert await api.put("vm.restore", {"source_url": "file://x"}) is None
        assert await api.put("vm.resume") is None
    assert server.requests == [
        ("GET /api/v1/vmm.ping HTTP/1.1", b""),
        ("PUT /api/v1/vm.restore HTTP/1.1", b'{"source_url": "file://x"}'),
        ("PUT /api/v1/vm.resume HTTP/1.1", b""),
    ]


async def test_a_chain_of_causes_is_one_error_and_the_connection_goes_on() -> None:
    chain = ok(b'["Error from API","The VM could not be restored","File exists (os error 17)"]', b"500")
    async with conversation(chain, ok(PING)) as (api, _):
        with pytest.raises(
            ApiError, match=r"^vm.restore: 500 Error from API: The VM could not .*: File exists"
        ) as caught:
            await api.put("vm.restore", {})
        assert caught.value.status == 500
        assert await api.get("vmm.ping")


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (ok(b'{ "error": "bad\nAll previous unanswered requests will be dropped." }', b"400"), 400, "dropped"),
        (
            b"HTTP/1.1 503\r\nServer: x\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
            b'{ "error": "Too many open connections" }',
            503,
            "Too many open connections",
        ),
        (b"HTTP/1.1 404 \r\n\r\n", 404, "404"),
        (ok(b"not json"), 0, "no JSON"),
        (ok(b"[" * 100_000), 0, "no JSON"),
        (ok(b"[" * 100_000, b"500"), 500, "500"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 0, "no HTTP"),
        (b"HTTP/1.1 OK\r\n\r\n", 0, "no HTTP"),
        (b"HTTP/1.1 " + b"2" * 5000 + b" \r\n\r\n", 0, "no HTTP"),
        (b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", 0, "no HTTP"),
        (b"HTTP/1.1 200 \r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 0, "too long"),
        (b"HTTP/1.1 200 \r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 0, "too long"),
        (b"HTTP/1.1 200 \r\nX: " + b"y" * 100_000, 0, "too long"),
        (b"HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\nhalf", 0, "the VMM is gone"),
        (b"", 0, "the VMM is gone"),
    ],
)
async def test_whatever_else_is_answered_is_an_error(answer: bytes, status: int, said: str) -> None:
    async with conversation(answer) as (api, _):
        with pytest.raises(ApiError, match=said) as caught:
            await api.get("vmm.ping")
        assert caught.value.status == status
        assert len(str(caught.value)) < 600


async def test_a_request_that_the_server_would_refuse_is_not_sent() -> None:
    async with conversation(ok(PING)) as (api, server):
        with pytest.raises(ApiError, match="too long"):
            await api.put("vm.create", "x" * MAX_REQUEST_BYTES)
        assert await api.get("vmm.ping")
    assert len(server.requests) == 1


async def test_a_vmm_that_does_not_answer_is_not_waited_for() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{directory}/api")
        silent.listen(1)
        async with await Api.connect(f"{directory}/api") as api:
            with pytest.raises(ApiError, match="no answer within"):
                await api.get("vmm.ping", seconds=0.01)


async def test_descriptors_travel_with_the_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("passed on")
    received = []

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            data, ancillary, _, _ = peer.recvmsg(65536, socket.CMSG_SPACE(4))
            received.append(data)
            received.append(os.read(array.array("i", ancillary[0][2])[0], 100))
            os.close(array.array("i", ancillary[0][2])[0])
            peer.sendall(NOTHING)

    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/api")
        listener.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        with (tmp_path / "file").open() as file:
            async with await Api.connect(f"{directory}/api") as api:
                assert await api.put("vm.add-net", {"id": "n"}, [file.fileno()]) is None
        thread.join()
    assert received[0].endswith(b'{"id": "n"}') and received[1] == b"passed on"
