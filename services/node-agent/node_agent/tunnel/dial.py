"""Connections to a guest agent, by every transport. Blocking: the tunnel gives each connection a thread."""

import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from node_agent.vmm import GuestAddress

# Stay under the 20 s that grpcio grants a connect.
DIAL_SECONDS = 18.0
SYN, ACK = b"\xff\xffsandpool SYN1", b"\xff\xffsandpool ACK1"
FIRST_WAIT_SECONDS = 2.0
# What a guest may have written for a dead connection: windows of HTTP/2 and buffers of virtio hold far less.
MAX_STALE_BYTES = 16 << 20
MAX_OK_BYTES = 32
VSOCK_PAUSE_SECONDS = 0.05


class NoAnswer(Exception):
    """The guest agent cannot be reached, or every port of the VM is in use."""


class Dialled:
    """A connection, what must be held while it lasts, and what the guest has said on it already."""

    def __init__(self, peer: socket.socket, lock: int | None = None, early: bytes = b"") -> None:
        self.peer = peer
        self.early = early
        self._lock = lock

    def close(self) -> None:
        """Close it and give its port back. Idempotent."""
        self.peer.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def dial(address: GuestAddress) -> Dialled:
    """Connect. Raises NoAnswer."""
    dialler = {"unix": _dial_unix, "hybrid-vsock": _dial_vsock, "virtio-serial": _dial_serial}.get(address.transport)
    if dialler is None:
        raise NoAnswer(f"unknown transport {address.transport}")
    try:
        return dialler(address)
    except OSError as error:
        raise NoAnswer(str(error)) from error


def _connect(path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(FIRST_WAIT_SECONDS)
        peer.connect(path)
    except OSError:
        peer.close()
        raise
    return peer


def _dial_unix(address: GuestAddress) -> Dialled:
    return Dialled(_connect(address.paths[0]))


def _dial_vsock(address: GuestAddress) -> Dialled:
    """Cloud Hypervisor's hybrid vsock. Until the guest listens, the VMM closes the connection without a word."""
    deadline = time.monotonic() + DIAL_SECONDS
    while True:
        peer = _connect_in_jail(address.paths[0])
        try:
            peer.sendall(b"CONNECT %d\n" % address.port)
            if _is_accepted(peer):
                return Dialled(peer)
        except (TimeoutError, ConnectionError):
            pass
        except BaseException:
            peer.close()
            raise
        peer.close()
        if time.monotonic() > deadline:
            raise NoAnswer("nobody listens in the guest")
        time.sleep(VSOCK_PAUSE_SECONDS)  # a guest that begins to listen makes no event here


def _connect_in_jail(path: str) -> socket.socket:
    """To that very socket: its directory belongs to the VMM, which could put a link to another one there."""
    place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            raise NoAnswer("the VMM has no socket there")
        return _connect(f"/proc/self/fd/{place}")
    finally:
        os.close(place)


def _is_accepted(peer: socket.socket) -> bool:
    """The number after OK is the host's own port and means nothing to us. Raises OSError."""
    line, deadline = b"", time.monotonic() + FIRST_WAIT_SECONDS
    while not line.endswith(b"\n") and len(line) < MAX_OK_BYTES:
        peer.settimeout(max(0.001, deadline - time.monotonic()))
        byte = peer.recv(1)  # byte by byte: what follows belongs to the client
        if not byte:
            return False
        line += byte
    return line.startswith(b"OK ") and line.endswith(b"\n")


def _dial_serial(address: GuestAddress) -> Dialled:
    """Borrow the port that has been free for longest, and shake hands on it.

    Bytes that the guest wrote for a dead connection are delivered to the next one: everything before the ACK with our
    own nonce is thrown away.
    """
    deadline = time.monotonic() + DIAL_SECONDS
    while True:
        for path in sorted(address.paths, key=_last_use):
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            try:
                peer, early = _shake_hands(path, deadline)
                return Dialled(peer, lock, early)
            except BaseException:
                os.close(lock)
                raise
            finally:
                with suppress(OSError):
                    os.utime(f"{path}.lock")
        if time.monotonic() > deadline:
            raise NoAnswer("every port of the VM is in use")
        time.sleep(0.05)  # flock on several files has no event


def _last_use(path: str) -> float:
    try:
        return Path(f"{path}.lock").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _shake_hands(path: str, deadline: float) -> tuple[socket.socket, bytes]:
    wait = FIRST_WAIT_SECONDS
    while time.monotonic() < deadline:
        peer = _connect(path)
        nonce = os.urandom(16).hex().encode() + b"\n"
        try:
            peer.sendall(SYN + nonce)
            early = _find_ack(peer, ACK + nonce, min(time.monotonic() + wait, deadline))
            if early is not None:
                return peer, early
        except OSError:
            pass
        except BaseException:
            peer.close()
            raise
        peer.close()
        wait *= 2
    raise NoAnswer("the guest agent does not shake hands")


def _find_ack(peer: socket.socket, ack: bytes, deadline: float) -> bytes | None:
    """Discard up to and including the ACK; what comes with it belongs to the client (the server's SETTINGS)."""
    tail, stale = b"", 0
    while stale < MAX_STALE_BYTES and (left := deadline - time.monotonic()) > 0:
        peer.settimeout(left)
        try:
            data = peer.recv(65536)
        except TimeoutError:
            return None
        if not data:
            return None
        tail += data
        _, found, early = tail.partition(ack)
        if found:
            return early
        stale += len(data)
        tail = tail[-len(ack) :]
    return None
