"""Entry point: without arguments the agent of a VM; `--unix PATH --data DIR` serves natively on a unix socket."""

import argparse
import asyncio
import ctypes
import os
import signal
import socket
import time
from pathlib import Path

from guest_agent.activity import Activity
from guest_agent.cgroup import Cgroups
from guest_agent.contained import Tree
from guest_agent.execution import Executions
from guest_agent.execution_service import ExecutionService
from guest_agent.file_service import FileService
from guest_agent.guest_service import GuestService
from guest_agent.http2 import CONFIGURATION, AgentServer
from guest_agent.launch import Launcher, renounce
from guest_agent.machine import MachineIdentity
from guest_agent.native import NativeIdentity
from guest_agent.python_language import PythonLanguage
from guest_agent.rpc import Service
from guest_agent.serial import SerialServer, find_ports
from sandpool.guest.v1 import guest_pb2
from sandpool.v1 import execution_pb2, file_pb2

# The user of user code in the image.
SANDBOX_USER = 1000
VSOCK_PORT = 1024
# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    data: Path = arguments.data
    data.mkdir(parents=True, exist_ok=True)
    activity = Activity(time.monotonic())
    executions = Executions(activity)
    native = arguments.unix is not None
    user, cgroups = (None, None) if native else (SANDBOX_USER, confine())
    launcher = Launcher(data, os.environ, user, cgroups)
    python = PythonLanguage(launcher, preimport=arguments.preimport or not native)
    execution = ExecutionService(executions, python, launcher)
    files = FileService(Tree(data, user))
    identity = NativeIdentity() if cgroups is None else MachineIdentity(cgroups)
    guest = GuestService(executions, execution, python, identity)
    server = AgentServer(
        [
            Service(execution_pb2.DESCRIPTOR.services_by_name["ExecutionService"], execution.methods(), activity),
            Service(file_pb2.DESCRIPTOR.services_by_name["FileService"], files.methods(), activity),
            Service(guest_pb2.DESCRIPTOR.services_by_name["GuestService"], guest.methods(), None),
        ],
        config=CONFIGURATION,
    )
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await listen(server, arguments.unix)
    print("ready guest", arguments.unix or "vm", flush=True)
    cells = asyncio.create_task(python.run())
    await stopping.wait()
    cells.cancel()
    launcher.kill_all()
    server.close()


def confine() -> Cgroups:
    """Set the agent of a VM apart from the user code that it will start."""
    renounce()
    cgroups = Cgroups()
    cgroups.set_up()
    return cgroups


async def listen(server: AgentServer, unix: Path | None) -> None:
    """On a unix socket, on every virtio-serial port of ours, or on vsock."""
    if unix is not None:
        await server.start(path=str(unix))
    elif ports := list(find_ports()):
        server._server_closed_fut = None  # grpclib's protocols ask for it; there is no asyncio server behind these
        SerialServer(server.protocol, ports)
    else:  # /dev/vsock says nothing: the module makes it without a device
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
        await server.start(sock=listener)


def keep_blocks() -> None:
    """Use blocks of the size of a read again: each line of output would map one, shrink and unmap it."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 2 << 20)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="guest_agent", description=__doc__)
    parser.add_argument("--unix", type=Path, help="path of the socket to serve on")
    parser.add_argument("--data", type=Path, default=Path("/mnt/data"), help="directory of the session's files")
    parser.add_argument("--preimport", action="store_true", help="import the popular libraries at the start")
    arguments = parser.parse_args()
    keep_blocks()
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
