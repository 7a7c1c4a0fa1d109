"""Clients of the tunnel that want nothing but its time, memory and descriptors."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.tunnel.server import MAX_CONNECTIONS

# A thread for each that has not said yet what it wants.
MAX_BYTES_PER_CLIENT = 32 << 10
DESCRIPTORS = 128


@dataclass(frozen=True)
class Tunnel:
    """A running one, without VMs."""

    address: tuple[str, int]
    pid: int

    def connect(self) -> socket.socket:
        """That does not wait for ever; a kernel that finds the queue full tries again after 1, 3, 7, 15, 31, 63 s."""
        return socket.create_connection(self.address, timeout=120)

    def answers(self) -> bool:
        """A client without a capability is told so."""
        with self.connect() as client:
            client.sendall(b"CONNECT vm1.vm.invalid:1 HTTP/1.1\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.1 407 ")

    def descriptors(self) -> int:
        """How many are open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def resident(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture
def tunnel(tmp_path: Path) -> Iterator[Tunnel]:
    """On a port of its own."""
    for name in ("vms", "keys"):
        (tmp_path / name).mkdir()
    arguments = ["--vms", str(tmp_path / "vms"), "--keys", str(tmp_path / "keys")]
    process = subprocess.Popen([sys.executable, "-m", "node_agent.tunnel", *arguments], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().decode().split()[2].rpartition(":")
        yield Tunnel((host, int(port)), process.pid)
        assert process.poll() is None
        process.terminate()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"CONNECT vm1.vm.invalid:1 HTTP/1.1\r\nX: " + b"a" * 100_000, b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT vm1.vm.invalid:1 HTTP/1.1\r\nProxy-Authorization: Basic !!!\r\n\r\n", b"407"),
        (b"CONNECT vm1.vm.invalid:1 HTTP/1.1\r\nProxy-Authorization: Basic /////w==\r\n\r\n", b"407"),
        (b"CONNECT vm1.vm.invalid:1 HTTP/1.1\r\n", b"408"),
    ],
)
def test_what_is_no_request_is_refused(tunnel: Tunnel, sent: bytes, status: bytes) -> None:
    with tunnel.connect() as client:
        client.sendall(sent)
        assert client.recv(100).split()[1] == status
    assert tunnel.answers()


def test_a_client_that_sends_a_byte_now_and_then_has_its_time(tunnel: Tunnel) -> None:
    with tunnel.connect() as client:
        client.settimeout(0.3)
        answer = b""
        while not answer:  # until it is told that its time is over
            client.sendall(b"C")
            try:
                answer = client.recv(100)
            except TimeoutError:
                continue
        assert answer.split()[1] in (b"400", b"408")


def test_thousands_that_say_nothing(tunnel: Tunnel) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    clients = []
    try:
        size = tunnel.resident()
        clients = [tunnel.connect() for _ in range(min(5000, most - 200))]
        assert tunnel.resident() - size < MAX_CONNECTIONS * MAX_BYTES_PER_CLIENT
        assert tunnel.answers()  # when the first of them have had their time
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert tunnel.answers()


def test_no_descriptor_left_is_no_reason_to_end(tunnel: Tunnel) -> None:
    resource.prlimit(tunnel.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    clients = [tunnel.connect() for _ in range(2 * DESCRIPTORS)]
    while tunnel.descriptors() < DESCRIPTORS:
        time.sleep(0.01)  # of another process there is no event
    for client in clients:
        client.close()
    assert tunnel.answers()


def test_what_breaks_off_leaves_nothing(tunnel: Tunnel) -> None:
    for sent in [b"", b"CONNECT", b"\x00" * 10, b"CONNECT vm1.vm.invalid:1 HTTP/1.1\r\n\r\n"] * 50:
        with tunnel.connect() as client:
            client.sendall(sent)
    assert tunnel.answers()
    assert tunnel.descriptors() < DESCRIPTORS
