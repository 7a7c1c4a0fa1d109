"""HTTP CONNECT with a capability, spliced to a VM. Threads; no part of the node agent's process."""

import base64
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from node_agent.tunnel.dial import Dialled, NoAnswer, dial
from node_agent.tunnel.relay import relay
from node_agent.tunnel.traffic import OPENED, Traffic
from node_agent.vmm import GUEST_ADDRESS_FILE, GuestAddress
from service_kit import capability

log = structlog.get_logger("tunnel")

HEADER_BYTES = 8192
HEADER_SECONDS = 5.0
MAX_CONNECTIONS = 4096
# When the process has no descriptor left, until some connection may have ended.
RETRY_SECONDS = 0.1
# Threads do nothing but poll: the default of 8 MiB of stack each would be address space for nothing.
STACK_BYTES = 256 << 10
_CONNECT = re.compile(rb"CONNECT ([0-9a-z][0-9a-z-]{0,62})\.vm\.invalid:1 HTTP/1\.[01]\r\n")
_AUTHORIZATION = re.compile(rb"\r\nproxy-authorization: *basic +([A-Za-z0-9+/=]+) *\r\n", re.IGNORECASE)


class Refused(Exception):
    """Answered with this status line."""


class Tunnel:
    """Accepts on a bound socket. vms holds a directory per VM, keys the public keys of those who may sign."""

    def __init__(self, listener: socket.socket, vms: Path, keys: Path, now: Callable[[], float] = time.time) -> None:
        self._listener = listener
        self._vms = vms
        self._keys = keys
        self._now = now
        self.traffic = Traffic()
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def serve(self) -> None:
        """Accept until the listener is closed."""
        threading.stack_size(STACK_BYTES)
        while True:
            self._places.acquire()
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                self._places.release()
                if self._listener.fileno() < 0:
                    return
                log.warning("accept_failed", error=str(error))  # a client that is gone, or no descriptor left
                time.sleep(RETRY_SECONDS)
                continue
            self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        """Handle it in a thread of its own; without one, the client has to try again."""
        try:
            threading.Thread(target=self._handle, args=(client,), daemon=True).start()
        except RuntimeError as error:
            log.warning("no_thread", error=str(error))
            client.close()
            self._places.release()

    def _handle(self, client: socket.socket) -> None:
        dialled: Dialled | None = None
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                dialled = self._open(client)
            except Refused as refusal:
                OPENED.labels(str(refusal).partition(" ")[0]).inc()
                client.sendall(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            OPENED.labels("200").inc()
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + dialled.early)
            with self.traffic.connection() as connection:
                relay(client, dialled.peer, connection)
        except OSError as error:
            log.info("tunnel_broken", error=str(error))
        finally:
            client.close()
            if dialled is not None:
                dialled.close()
            self._places.release()

    def _open(self, client: socket.socket) -> Dialled:
        """Read the request, check the capability, dial. Raises Refused."""
        header = _read_header(client)
        connect, authorization = _CONNECT.match(header), _AUTHORIZATION.search(header)
        if connect is None:
            raise Refused("400 Bad Request")
        vm_id = connect[1].decode()
        if authorization is None or not self._permitted(authorization[1], vm_id):
            raise Refused("407 Proxy Authentication Required")
        try:
            address = GuestAddress.from_json((self._vms / vm_id / GUEST_ADDRESS_FILE).read_text())
        except OSError:
            raise Refused("404 Not Found") from None
        try:
            return dial(address)
        except NoAnswer as error:
            log.info("no_answer", vm_id=vm_id, error=str(error))
            raise Refused("503 Service Unavailable") from None

    def _permitted(self, basic: bytes, vm_id: str) -> bool:
        try:
            user, _, token = base64.b64decode(basic, validate=True).decode("ascii").partition(":")
            capability.verify(self._public_keys(), token, vm_id, self._now())
        except (ValueError, capability.CapabilityRefused):
            return False
        return user == "vm"

    def _public_keys(self) -> list[Ed25519PublicKey]:
        """Read at every connect: two small files, and a new key holds at once."""
        return [Ed25519PublicKey.from_public_bytes(path.read_bytes()) for path in sorted(self._keys.glob("*.pub"))]


def _read_header(client: socket.socket) -> bytes:
    """Up to the empty line. A client says nothing more before the answer. Raises Refused."""
    deadline, header = time.monotonic() + HEADER_SECONDS, b""
    while not header.endswith(b"\r\n\r\n"):
        left = deadline - time.monotonic()
        if left <= 0 or len(header) >= HEADER_BYTES:
            raise Refused("400 Bad Request")
        client.settimeout(left)
        try:
            data = client.recv(HEADER_BYTES - len(header))
        except TimeoutError:
            raise Refused("408 Request Timeout") from None
        if not data:
            raise Refused("400 Bad Request")
        header += data
    return header
