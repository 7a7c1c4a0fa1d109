"""Entry point: `python -m guest_agent --unix PATH --data DIR` serves natively on a unix socket."""

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path

from grpclib.config import Configuration
from grpclib.server import Server

from guest_agent.activity import Activity
from guest_agent.execution import Executions
from guest_agent.execution_service import ExecutionService
from guest_agent.guest_service import GuestService
from guest_agent.launch import Launcher
from guest_agent.native import NativeIdentity
from guest_agent.python_language import PythonLanguage
from guest_agent.rpc import Service
from sandpool.guest.v1 import guest_pb2
from sandpool.v1 import execution_pb2, file_pb2

# Windows of HTTP/2: what a stream and a connection may have under way.
CONFIGURATION = Configuration(http2_connection_window_size=1 << 20, http2_stream_window_size=1 << 18)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    data: Path = arguments.data
    data.mkdir(parents=True, exist_ok=True)
    activity = Activity(time.monotonic())
    executions = Executions(activity)
    launcher = Launcher(data, os.environ, user=None)
    python = PythonLanguage(launcher, preimport=arguments.preimport)
    execution = ExecutionService(executions, python, launcher)
    guest = GuestService(executions, python, NativeIdentity())
    server = Server(
        [
            Service(execution_pb2.DESCRIPTOR.services_by_name["ExecutionService"], execution.methods(), activity),
            Service(file_pb2.DESCRIPTOR.services_by_name["FileService"], {}, activity),
            Service(guest_pb2.DESCRIPTOR.services_by_name["GuestService"], guest.methods(), None),
        ],
        config=CONFIGURATION,
    )
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await server.start(path=str(arguments.unix))
    print("ready guest", arguments.unix, flush=True)
    cells = asyncio.create_task(python.run())
    await stopping.wait()
    cells.cancel()
    server.close()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="guest_agent", description=__doc__)
    parser.add_argument("--unix", type=Path, required=True, help="path of the socket to serve on")
    parser.add_argument("--data", type=Path, required=True, help="directory of the session's files")
    parser.add_argument("--preimport", action="store_true", help="import the popular libraries at the start")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
