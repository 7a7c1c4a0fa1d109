"""QEMU behind the Vmm protocol: templates frozen by a migration that leaves memory in its file, clones that map it."""

import asyncio
import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node_agent.drivers.process import VmProcess, recorded_pid, unrecorded_pids
from node_agent.drivers.proof import host_cpu
from node_agent.drivers.qemu import frozen as bundles
from node_agent.drivers.qemu import migration, process
from node_agent.drivers.qemu.command import Launch, Role, arguments
from node_agent.drivers.qemu.frozen import FROZEN_FILE, Frozen
from node_agent.drivers.qemu.probe import Probe, version
from node_agent.drivers.qemu.qmp import QmpError
from node_agent.vmm import (
    BUILDING,
    GUEST_ADDRESS_FILE,
    Acceleration,
    CloneFailed,
    GuestAddress,
    Image,
    MachineSpec,
    RunningVm,
)

# It takes a tenth of a second; a QEMU that does not get on is not waited for.
RESUME_SECONDS = 60.0
# A second or two, and what the disk takes for the memory.
HIBERNATE_SECONDS = 300.0
# Of the QEMU that takes a hibernating VM's memory, in the VM's directory: sockets need short paths.
WRITER = "w"
# What the kernel keeps of what QEMU says, and what is told of it, for humans.
PIPE_BYTES, COMPLAINT_CHARACTERS = 65_536, 500


class QemuVmm:
    """The embedded default. cache keeps the proof that KVM works, and holds the images to prove it with."""

    name = "qemu"

    def __init__(self, cache: Path | None = None) -> None:
        self._probe = Probe(cache)

    async def probe(self) -> Acceleration:
        """Proven once there is an image to boot; until then emulation, which needs no proof."""
        return await self._probe.acceleration()

    async def fingerprint(self) -> str:
        """QEMU's version and, with KVM, the host's CPU: under emulation -cpu max is the same everywhere."""
        acceleration = await self.probe()
        host = host_cpu() if acceleration.name == "kvm" else ""
        facts = [await version(), acceleration.name, host]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """Boot, quiesce, freeze."""
        vm = directory / BUILDING
        with _translated("template") as stderr:
            vm.mkdir()
            await _copy(image.scratch, vm / "scratch")
            frozen = Frozen(image, machine, (await self.probe()).name)
            running = _start(frozen, Role.TEMPLATE, directory / "memory", vm, stderr)
            try:
                async with migration.control(vm) as qmp:
                    await quiesce(running.address)
                    await migration.freeze(qmp, directory / "state")
            finally:
                await running.destroy()
            (vm / "scratch").rename(directory / "scratch")
            shutil.rmtree(vm)
            bundles.seal(directory, frozen)

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> VmProcess:
        """Start, load the state, resume."""
        with _translated("clone") as stderr:
            frozen = bundles.read(template, machine)
            await _copy(template / "scratch", directory / "scratch")
            (directory / FROZEN_FILE).write_text(frozen.to_json())
            running = _start(frozen, Role.CLONE, template / "memory", directory, stderr)
            try:
                async with asyncio.timeout(RESUME_SECONDS), migration.control(directory) as qmp:
                    await migration.resume(qmp, template / "state")
                (directory / GUEST_ADDRESS_FILE).write_text(running.address.to_json())
            except BaseException:
                await running.destroy()
                raise
        return running

    async def hibernate(self, vm: RunningVm, directory: Path) -> None:
        """Move the VM into a second QEMU that writes its memory to a file, and freeze that one.

        The memory of a clone is mapped privately: it is in no file that could be left as it is.
        """
        home = process.directory_of(vm.address)
        with _translated("hibernate") as stderr:
            try:
                async with asyncio.timeout(HIBERNATE_SECONDS):
                    # Without an address it is not recovered, as it may be half moved by then.
                    (home / GUEST_ADDRESS_FILE).unlink()
                    frozen = Frozen.from_json((home / FROZEN_FILE).read_text())
                    await _write(frozen, home, directory, stderr)
            finally:
                await vm.destroy()
            await _hand_over(home / "scratch", directory / "scratch")
            bundles.seal(directory, frozen)

    async def recover(self, directory: Path) -> VmProcess | None:
        """By pid and start time; a VM that was never resumed, or hibernates, has no address and is killed."""
        await _kill_writer(directory)
        for pid in _left_in(directory):
            with suppress(ProcessLookupError):
                running = VmProcess(pid, process.address_of(directory))
                if (directory / GUEST_ADDRESS_FILE).exists():
                    return running
                await running.destroy()
        return None


@contextmanager
def _translated(what: str) -> Iterator[int]:
    """Whatever else goes wrong on the way, with what QEMU has said by then: yields its stderr.

    A pipe and no file: a guest can make its QEMU complain without end. QEMU neither waits for a pipe that is full nor
    dies of one that nobody reads any more.
    """
    said_by_qemu, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield stderr
    except (OSError, QmpError, subprocess.CalledProcessError, ValueError, KeyError, TypeError) as error:
        said = (error.stderr or b"").decode() if isinstance(error, subprocess.CalledProcessError) else ""
        raise CloneFailed(f"{what}: {error}; {said or _complaint(said_by_qemu)}") from error
    finally:
        os.close(said_by_qemu)
        os.close(stderr)


def _complaint(pipe: int) -> str:
    with suppress(BlockingIOError):
        return os.read(pipe, PIPE_BYTES).decode(errors="replace")[-COMPLAINT_CHARACTERS:].strip()
    return ""


def _start(frozen: Frozen, role: Role, memory: Path, directory: Path, stderr: int) -> VmProcess:
    listener = process.listen(directory)
    try:
        root_bytes, qmp = frozen.image.root.stat().st_size, listener.fileno()
        launch = Launch(frozen.image, frozen.machine, frozen.acceleration, memory, root_bytes, role, qmp)
        return process.spawn(arguments(launch), directory, listener, stderr)
    finally:
        listener.close()


async def _write(frozen: Frozen, home: Path, bundle: Path, stderr: int) -> None:
    """Memory and state of the VM in home. The writer uses the same disk: it takes it over, and does nothing with it."""
    place = home / WRITER
    place.mkdir()
    (place / "scratch").symlink_to(home / "scratch")
    writer = _start(frozen, Role.WRITER, bundle / "memory", place, stderr)
    try:
        async with migration.control(home) as source, migration.control(place) as target:
            await migration.move(source, target, home / "move")
            await migration.freeze(target, bundle / "state")
    finally:
        await writer.destroy()


async def _kill_writer(home: Path) -> None:
    place = home / WRITER
    for pid in _left_in(place) if place.is_dir() else ():
        with suppress(ProcessLookupError):
            await VmProcess(pid, process.address_of(place)).destroy()


def _left_in(directory: Path) -> list[int]:
    pid = recorded_pid(directory)
    return unrecorded_pids(directory) if pid is None else [pid]


async def _copy(source: Path, target: Path) -> None:
    """Only the allocated blocks, or none at all where the file system shares them."""
    command = ["cp", "--sparse=always", "--reflink=auto", "--no-preserve=mode", str(source), str(target)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


async def _hand_over(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        await _copy(source, target)
