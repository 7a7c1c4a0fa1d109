"""For tests of the services only: every "VM" is a guest agent process on this host. It isolates nothing."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from node_agent.drivers.process import VmProcess, record, recorded_pid
from node_agent.vmm import GUEST_ADDRESS_FILE, Acceleration, CloneFailed, GuestAddress, Image, MachineSpec

SOCKET = "s"
# The limit of a unix socket's path, less its end.
MAX_SOCKET_PATH = 107
TEMPLATE_FILE = "fake"


class FakeVmm:
    """Passes the same behaviour suite as a hypervisor. A clone is a fresh process: it costs a Python start."""

    name = "fake"

    async def probe(self) -> Acceleration:
        """There is nothing to accelerate."""
        return Acceleration("none", "processes on this host instead of VMs: for tests only, isolates nothing")

    async def fingerprint(self) -> str:
        """Of the guest agent."""
        return hashlib.sha256(version("sandpool").encode()).hexdigest()[:32]

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """A process that can be quiesced is the proof; of its memory nothing can be kept."""
        work = directory / "vm"
        work.mkdir()
        running = await _start(work)
        try:
            await quiesce(running.address)
        finally:
            await running.destroy()
            shutil.rmtree(work)
        (directory / TEMPLATE_FILE).touch(mode=0o444)

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> VmProcess:
        """Start a process."""
        if not (template / TEMPLATE_FILE).exists():
            raise CloneFailed("clone: the template is not complete")
        running = await _start(directory)
        (directory / GUEST_ADDRESS_FILE).write_text(running.address.to_json())
        return running

    async def recover(self, directory: Path) -> VmProcess | None:
        """By pid and start time; one that was never finished has no address and is killed."""
        pid = recorded_pid(directory)
        if pid is None:
            return None
        with suppress(ProcessLookupError):
            running = VmProcess(pid, _address(directory))
            if (directory / GUEST_ADDRESS_FILE).exists():
                return running
            await running.destroy()
        return None


def _address(directory: Path) -> GuestAddress:
    return GuestAddress("unix", (str(directory / SOCKET),))


async def _start(directory: Path) -> VmProcess:
    address = _address(directory)
    if len(address.paths[0]) > MAX_SOCKET_PATH:
        raise CloneFailed(f"clone: {address.paths[0]} is too long for a socket")
    data = directory / "data"
    arguments = [sys.executable, "-m", "guest_agent", "--unix", address.paths[0], "--data", str(data)]
    ready_in, ready_out = os.pipe()
    try:
        with (directory / "stderr").open("wb") as stderr:
            guest = subprocess.Popen(  # noqa: ASYNC220
                arguments, stdin=subprocess.DEVNULL, stdout=ready_out, stderr=stderr, start_new_session=True
            )
        os.close(ready_out)
        guest.returncode = 0  # reaped by pidfd, not by Popen
        record(directory, guest.pid)
        running = VmProcess(guest.pid, address)
        try:
            with os.fdopen(os.dup(ready_in), "rb") as ready:
                line = await asyncio.to_thread(ready.readline)
        except BaseException:
            await running.destroy()
            raise
    finally:
        os.close(ready_in)
    if not line.startswith(b"ready guest"):
        await running.destroy()
        raise CloneFailed(f"clone: {(directory / 'stderr').read_text(errors='replace')[-500:].strip()}")
    return running
