"""QEMU behind the Vmm protocol: templates frozen by a migration that leaves memory in its file, clones that map it."""

import asyncio
import hashlib
import json
import shlex
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from node_agent.drivers.process import VmProcess, recorded_pid, unrecorded_pids
from node_agent.drivers.qemu import process
from node_agent.drivers.qemu.command import Launch, arguments
from node_agent.drivers.qemu.probe import Probe, host_cpu, version
from node_agent.drivers.qemu.qmp import QmpError
from node_agent.vmm import BUILDING, GUEST_ADDRESS_FILE, Acceleration, CloneFailed, GuestAddress, Image, MachineSpec

FROZEN_FILE = "image.json"
# It takes a tenth of a second; a QEMU that does not get on is not waited for.
RESUME_SECONDS = 60.0
# Memory stays in its own file; "events" makes QEMU say when a migration has ended.
CAPABILITIES = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]


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
        with _translated("template", vm):
            vm.mkdir()
            await _copy(image.scratch, vm / "scratch")
            frozen = Frozen(image, (await self.probe()).name)
            running = _start(frozen, machine, directory, vm, is_clone=False)
            try:
                await _freeze(vm, directory / "state", quiesce)
            finally:
                await running.destroy()
            (vm / "scratch").rename(directory / "scratch")
            (directory / FROZEN_FILE).write_text(frozen.to_json())
            shutil.rmtree(vm)
            for path in directory.iterdir():
                # QEMU opens even memory that it maps privately for writing.
                path.chmod(0o600 if path.name == "memory" else 0o400)

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> VmProcess:
        """Start, load the state, resume."""
        with _translated("clone", directory):
            frozen = Frozen.from_json((template / FROZEN_FILE).read_text())
            _check(template, machine)
            await _copy(template / "scratch", directory / "scratch")
            running = _start(frozen, machine, template, directory, is_clone=True)
            try:
                async with asyncio.timeout(RESUME_SECONDS):
                    await _resume(directory, template / "state")
                (directory / GUEST_ADDRESS_FILE).write_text(running.address.to_json())
            except BaseException:
                await running.destroy()
                raise
        return running

    async def recover(self, directory: Path) -> VmProcess | None:
        """By pid and start time; a VM that was never resumed has no address and is killed."""
        pid = recorded_pid(directory)
        for found in unrecorded_pids(directory) if pid is None else [pid]:
            with suppress(ProcessLookupError):
                running = VmProcess(found, process.address_of(directory))
                if (directory / GUEST_ADDRESS_FILE).exists():
                    return running
                await running.destroy()
        return None


@dataclass(frozen=True)
class Frozen:
    """What a template was booted from and with: a clone needs the same."""

    image: Image
    acceleration: str

    def to_json(self) -> str:
        """For the file."""
        image = {name: str(value) for name, value in asdict(self.image).items()}
        return json.dumps({"image": image, "acceleration": self.acceleration})

    @classmethod
    def from_json(cls, text: str) -> "Frozen":
        """From the file. Raises ValueError, KeyError, TypeError."""
        values = json.loads(text)
        image_id = values["image"].pop("image_id")
        paths = {name: Path(value) for name, value in values["image"].items()}
        return cls(Image(**paths, image_id=image_id), values["acceleration"])


@contextmanager
def _translated(what: str, directory: Path) -> Iterator[None]:
    """Whatever else goes wrong on the way."""
    try:
        yield
    except (OSError, QmpError, subprocess.CalledProcessError, ValueError, KeyError, TypeError) as error:
        said = (error.stderr or b"").decode() if isinstance(error, subprocess.CalledProcessError) else ""
        raise CloneFailed(f"{what}: {error}; {said or _complaint(directory)}") from error


def _check(template: Path, machine: MachineSpec) -> None:
    """QEMU makes up memory that is missing, and waits for ever for a state that is. Raises OSError, ValueError."""
    if (template / "memory").stat().st_size != machine.memory_bytes:
        raise ValueError("the template's memory has another size")
    if (template / "state").stat().st_size == 0:
        raise ValueError("the template's state is empty")


def _start(frozen: Frozen, machine: MachineSpec, template: Path, directory: Path, *, is_clone: bool) -> VmProcess:
    listener = process.listen(directory)
    try:
        root_bytes, memory = frozen.image.root.stat().st_size, template / "memory"
        qmp = listener.fileno()
        launch = Launch(frozen.image, machine, frozen.acceleration, memory, root_bytes, is_clone, qmp)
        return process.spawn(arguments(launch), directory, listener)
    finally:
        listener.close()


async def _freeze(vm: Path, state: Path, quiesce: Callable[[GuestAddress], Awaitable[None]]) -> None:
    qmp = await process.connect(vm)
    try:
        await quiesce(process.address_of(vm))
        await qmp.execute("stop")
        await qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
        await qmp.execute("migrate", uri=f"exec:cat > {shlex.quote(str(state))}")
        await qmp.migration_ended()
    finally:
        await qmp.close()


async def _resume(vm: Path, state: Path) -> None:
    qmp = await process.connect(vm)
    try:
        await qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
        await qmp.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(str(state))}")
        await qmp.migration_ended()  # a cont before this point leaves it paused
        await qmp.execute("cont")
    finally:
        await qmp.close()


async def _copy(source: Path, target: Path) -> None:
    """Only the allocated blocks, or none at all where the file system shares them."""
    command = ["cp", "--sparse=always", "--reflink=auto", "--no-preserve=mode", str(source), str(target)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


def _complaint(directory: Path) -> str:
    """What QEMU said last."""
    with suppress(OSError):
        return (directory / "stderr").read_text(errors="replace")[-500:].strip()
    return ""
