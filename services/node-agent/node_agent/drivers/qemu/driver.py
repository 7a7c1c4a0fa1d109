"""QEMU behind the Vmm protocol: templates frozen by a migration that leaves memory in its file, clones that map it."""

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from node_agent.drivers.process import VmProcess, recorded_pid
from node_agent.drivers.qemu import process
from node_agent.drivers.qemu.command import Launch, arguments
from node_agent.drivers.qemu.qmp import Qmp, QmpError
from node_agent.vmm import GUEST_ADDRESS_FILE, Acceleration, CloneFailed, GuestAddress, Image, MachineSpec

# Memory stays in its own file; "events" makes QEMU say when a migration has ended.
CAPABILITIES = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]


class QemuVmm:
    """The embedded default. Acceleration is software emulation: KVM is used only once a probe boot can prove it."""

    name = "qemu"

    async def probe(self) -> Acceleration:
        """Emulation needs no proof."""
        return Acceleration("emulation", "KVM is not probed yet; software emulation works everywhere")

    async def fingerprint(self) -> str:
        """QEMU's version and, as -cpu max offers what QEMU can emulate, nothing of the host."""
        done = await asyncio.to_thread(
            subprocess.run, ["qemu-system-x86_64", "--version"], capture_output=True, check=True
        )
        return hashlib.sha256(done.stdout + b"tcg").hexdigest()[:32]

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """Boot, quiesce, freeze."""
        vm = directory / "vm"
        vm.mkdir()
        await _copy(image.scratch, vm / "scratch")
        running = _start(image, machine, directory, vm, is_clone=False)
        try:
            qmp = await process.connect(vm)
            try:
                await quiesce(process.address_of(vm))
                await qmp.execute("stop")
                await qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
                await qmp.execute("migrate", uri=f"exec:cat > {directory}/state")
                await qmp.migration_ended()
            finally:
                await qmp.close()
        except (OSError, QmpError) as error:
            raise CloneFailed(f"template: {error}; {_complaint(vm)}") from error
        finally:
            await running.destroy()
        (vm / "scratch").rename(directory / "scratch")
        record = {key: str(value) for key, value in asdict(image).items()}
        (directory / "image.json").write_text(json.dumps(record))
        shutil.rmtree(vm)
        for name in ("memory", "state", "scratch", "image.json"):
            (directory / name).chmod(0o444)

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> VmProcess:
        """Start, load the state, resume."""
        record = json.loads((template / "image.json").read_text())
        image_id = record.pop("image_id")
        image = Image(**{key: Path(value) for key, value in record.items()}, image_id=image_id)
        await _copy(template / "scratch", directory / "scratch")
        running = _start(image, machine, template, directory, is_clone=True)
        try:
            qmp = await process.connect(directory)
            try:
                await _resume(qmp, template / "state")
            finally:
                await qmp.close()
            (directory / GUEST_ADDRESS_FILE).write_text(running.address.to_json())
        except BaseException as error:
            await running.destroy()
            if isinstance(error, OSError | QmpError):
                raise CloneFailed(f"clone: {error}; {_complaint(directory)}") from error
            raise
        return running

    async def recover(self, directory: Path) -> VmProcess | None:
        """By pid and start time; a VM that was never resumed has no address and is killed."""
        pid = recorded_pid(directory)
        if pid is None:
            return None
        with suppress(ProcessLookupError):
            running = VmProcess(pid, process.address_of(directory))
            if (directory / GUEST_ADDRESS_FILE).exists():
                return running
            await running.destroy()
        return None


def _start(image: Image, machine: MachineSpec, template: Path, directory: Path, *, is_clone: bool) -> VmProcess:
    listener = process.listen(directory)
    try:
        root_bytes = image.root.stat().st_size
        launch = Launch(image, machine, "tcg", template / "memory", root_bytes, is_clone, listener.fileno())
        return process.spawn(arguments(launch), directory, listener)
    finally:
        listener.close()


async def _resume(qmp: Qmp, state: Path) -> None:
    await qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
    await qmp.execute("migrate-incoming", uri=f"exec:cat {state}")
    await qmp.migration_ended()  # a cont before this point leaves it paused
    await qmp.execute("cont")


async def _copy(source: Path, target: Path) -> None:
    """Only the allocated blocks, or none at all where the file system shares them."""
    command = ["cp", "--sparse=always", "--reflink=auto", "--no-preserve=mode", str(source), str(target)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


def _complaint(directory: Path) -> str:
    """What QEMU said last."""
    with suppress(OSError):
        return (directory / "stderr").read_text(errors="replace")[-500:].strip()
    return ""
