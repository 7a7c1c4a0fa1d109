"""The handshake on a virtio-serial port, against a port that answers like the guest."""

import socket
import threading
from pathlib import Path

from node_agent.tunnel.dial import ACK, SYN, dial
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
