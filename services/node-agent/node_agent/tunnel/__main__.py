"""Entry point: `python -m node_agent.tunnel --listen 127.0.0.1:PORT --vms DIR --keys DIR`."""

import argparse
import signal
import socket
import threading
from pathlib import Path

from node_agent.tunnel.server import Tunnel
from service_kit import log


def main() -> None:
    """Serve until SIGTERM or SIGINT. Loopback only: bytes pass in the clear."""
    parser = argparse.ArgumentParser(prog="sandpool-tunnel", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="loopback address and port; port 0 is any free one")
    parser.add_argument("--vms", type=Path, required=True, help="directory with a directory per VM")
    parser.add_argument("--keys", type=Path, required=True, help="directory of public keys (*.pub, 32 bytes)")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        parser.error("--listen: only loopback")
    log.configure("tunnel")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=1024)
    tunnel = Tunnel(listener, arguments.vms, arguments.keys)
    threading.Thread(target=tunnel.serve, daemon=True).start()
    print(f"ready tunnel 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
