"""The handshakes of dialling, against ports that answer as a guest does, and as it should not."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from node_agent.tunnel import dial as module
from node_agent.tunnel.dial import ACK, MAX_STALE_BYTES, SYN, NoAnswer, dial
from node_agent.vmm import GuestAddress


def test_what_the_guest_says_with_its_ack_is_kept_and_what_was_before_it_is_not(tmp_path: Path) -> None:
    listener = socket.create_server(str(tmp_path / "port0"), family=socket.AF_UNIX)

    def guest() -> None:
        peer, _ = listener.accept()
        with peer:
            line = peer.recv(4096)
            peer.sendall(b"left over" * 10_000 + ACK + line[len(SYN) :] + b"settings")
            peer.recv(1)

    thread = threading.Thread(target=guest)
    thread.start()
    dialled = dial(GuestAddress("virtio-serial", (str(tmp_path / "port0"),)))
    assert dialled.early == b"settings"
    dialled.close()
    thread.join()
    listener.close()


@contextmanager
def answering(path: Path, answer: bytes, *, for_ever: bool) -> Iterator[list[int]]:
    """A port that says the same to whoever comes; how many bytes each of them took."""
    listener = socket.create_server(str(path), family=socket.AF_UNIX)
    taken: list[int] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                taken.append(0)
                with peer, suppress(OSError):
                    taken[-1] += peer.send(answer)
                    while for_ever:
                        taken[-1] += peer.send(answer)
                    peer.recv(4096)  # the SYN
                    peer.recv(4096)  # the end

    thread = threading.Thread(target=serve)
    thread.start()
    yield taken
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_guest_that_never_comes_to_its_ack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_SECONDS", 0.5)
    with answering(tmp_path / "port0", ACK * 10_000, for_ever=True) as taken, pytest.raises(NoAnswer):
        dial(GuestAddress("virtio-serial", (str(tmp_path / "port0"),)))
    assert taken and max(taken) < 2 * MAX_STALE_BYTES


def test_a_guest_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_SECONDS", 0.2)
    with answering(tmp_path / "port0", b"", for_ever=False), pytest.raises(NoAnswer):
        dial(GuestAddress("virtio-serial", (str(tmp_path / "port0"),)))


@pytest.mark.parametrize("answer", [b"", b"OK ", b"NO 1\n", b"OK" * 1000, b"\n"])
def test_a_vsock_that_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(module, "DIAL_SECONDS", 0.2)
    with answering(tmp_path / "vsock", answer, for_ever=False), pytest.raises(NoAnswer):
        dial(GuestAddress("hybrid-vsock", (str(tmp_path / "vsock"),), 1024))


class HybridVsock:
    """The host's end of a VM's vsock: takes CONNECT lines and gives an answer to each."""

    def __init__(self, path: Path, answers: list[bytes]) -> None:
        self.lines: list[bytes] = []
        self._listener = socket.create_server(str(path), family=socket.AF_UNIX)
        self._thread = threading.Thread(target=self._serve, args=(answers,))
        self._thread.start()

    def _serve(self, answers: list[bytes]) -> None:
        for answer in answers:
            peer, _ = self._listener.accept()
            with peer:
                self.lines.append(peer.recv(4096))
                peer.sendall(answer)
                if answer:
                    peer.recv(1)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def test_a_guest_that_does_not_listen_yet_is_dialled_again(tmp_path: Path) -> None:
    vsock = HybridVsock(tmp_path / "v", [b"", b"", b"OK 1073741824\nsettings"])
    dialled = dial(GuestAddress("hybrid-vsock", (str(tmp_path / "v"),), 1024))
    assert dialled.peer.recv(100) == b"settings"  # nothing of it was taken for the answer
    dialled.close()
    vsock.close()
    assert vsock.lines == [b"CONNECT 1024\n"] * 3


def test_a_dead_vmm_is_no_answer_at_once(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "v"))
    with pytest.raises(NoAnswer, match="refused"):
        dial(GuestAddress("hybrid-vsock", (str(tmp_path / "v"),), 1024))
    with pytest.raises(NoAnswer, match="No such file"):
        dial(GuestAddress("hybrid-vsock", (str(tmp_path / "w"),), 1024))


def test_a_vmm_leads_nobody_to_the_socket_of_another(tmp_path: Path) -> None:
    with socket.create_server(str(tmp_path / "others"), family=socket.AF_UNIX):
        (tmp_path / "v").symlink_to(tmp_path / "others")
        with pytest.raises(NoAnswer, match="no socket there"):
            dial(GuestAddress("hybrid-vsock", (str(tmp_path / "v"),), 1024))
