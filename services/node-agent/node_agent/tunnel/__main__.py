"""Entry point: `python -m node_agent.tunnel --listen 127.0.0.1:PORT --vms DIR --keys DIR`."""

import argparse
import asyncio
import resource
import signal
import socket
import sys
import threading
from pathlib import Path

from node_agent.tunnel.server import Tunnel
from service_kit import log, pages
from service_kit.health import Health
from service_kit.metrics import reading


def main() -> None:
    """Serve until SIGTERM or SIGINT. Loopback only: bytes pass in the clear."""
    parser = argparse.ArgumentParser(prog="sandpool-tunnel", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="loopback address and port; port 0 is any free one")
    parser.add_argument("--vms", type=Path, required=True, help="directory with a directory per VM")
    parser.add_argument("--keys", type=Path, required=True, help="directory of public keys (*.pub, 32 bytes)")
    parser.add_argument("--metrics-listen", default="", help="unix:PATH or 127.0.0.1:PORT of /metrics; none if empty")
    parser.add_argument("--await-record", action="store_true", help="end if stdin does before it says 'recorded'")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        parser.error("--listen: only loopback")
    log.configure("tunnel")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection takes up to three
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=1024)
    tunnel = Tunnel(listener, arguments.vms, arguments.keys)
    try:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        asyncio.run(serve(tunnel, address, arguments.metrics_listen, await_record=arguments.await_record))
    except pages.PagesRefused as error:
        sys.exit(f"sandpool-tunnel: {error}")


async def serve(tunnel: Tunnel, address: str, metrics_listen: str, *, await_record: bool) -> None:
    """Connections have threads of their own; this one answers what looks after them, and waits for the end."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with reading(tunnel.traffic.read):
        async with pages.observed(metrics_listen, "tunnel", Health()):
            threading.Thread(target=tunnel.serve, daemon=True).start()
            print("ready tunnel", address, flush=True)
            # An agent that is killed before it has written down where we are leaves a tunnel that nobody would find.
            if await_record and not await asyncio.to_thread(sys.stdin.readline):
                return
            await stopping.wait()


if __name__ == "__main__":
    main()
