"""The QEMU process of one VM: its sockets, its start, its control connection."""

import socket
import subprocess
from pathlib import Path

from node_agent.drivers import process
from node_agent.drivers.process import VmProcess
from node_agent.drivers.qemu.command import PORTS
from node_agent.drivers.qemu.qmp import Qmp
from node_agent.vmm import GuestAddress
from service_kit import failpoint


def address_of(directory: Path) -> GuestAddress:
    """The ports of the VM in directory."""
    return GuestAddress("virtio-serial", tuple(str(directory / f"port{number}") for number in range(PORTS)))


def directory_of(address: GuestAddress) -> Path:
    """The VM's whose ports these are."""
    return Path(address.paths[0]).parent


def listen(directory: Path) -> socket.socket:
    """The QMP socket, bound before QEMU starts: there is nothing to poll for. Raises OSError."""
    (directory / "qmp").unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(directory / "qmp"))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def spawn(arguments: list[str], directory: Path, listener: socket.socket, stderr: int) -> VmProcess:
    """Start QEMU in a session of its own, so that it survives us, and record it. Raises OSError."""
    qemu = subprocess.Popen(
        arguments,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=(listener.fileno(),),
        start_new_session=True,
    )
    with process.recording(qemu):
        failpoint.reach(failpoint.Place.VM_SPAWNED)
        process.record(directory, qemu.pid)
        return VmProcess(qemu.pid, address_of(directory))


async def connect(directory: Path) -> Qmp:
    """The control connection of the VM in directory. Raises OSError, QmpError."""
    return await Qmp.connect(str(directory / "qmp"))
