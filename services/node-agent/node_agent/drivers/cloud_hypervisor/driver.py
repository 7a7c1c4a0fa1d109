"""Cloud Hypervisor behind the Vmm protocol: templates are snapshots whose memory stays in its file, clones map it."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import structlog

from node_agent.drivers.cloud_hypervisor import config, confine, process
from node_agent.drivers.cloud_hypervisor.api import Api, ApiError
from node_agent.drivers.cloud_hypervisor.bundle import MEMORY, SCRATCH, STATE, BadBundle, Bundle, read_json, take_back
from node_agent.drivers.cloud_hypervisor.cgroups import Cgroups
from node_agent.drivers.cloud_hypervisor.confine import Confinement, UidRange, Unconfined
from node_agent.drivers.cloud_hypervisor.jail import make_jail, make_place, put_restored, put_scratch
from node_agent.drivers.cloud_hypervisor.mapping import WrongMapping, check_private
from node_agent.drivers.cloud_hypervisor.probe import Installation
from node_agent.drivers.cloud_hypervisor.process import API, CloudHypervisorVm, Start, jail_of, spawn
from node_agent.drivers.process import recorded_pid, unrecorded_pids
from node_agent.drivers.proof import host_cpu
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

log = structlog.get_logger("cloud-hypervisor")

# Memory that is not in a shared file is written to one: half a minute for a large VM on a slow disk.
SNAPSHOT_SECONDS = 300.0
# A VMM that another agent has left answers at once, or is busy with what that agent wanted of it.
PING_SECONDS = 10.0
RESTORED_URL, SAVED_URL = f"file://{config.RESTORED}", f"file://{config.SAVED}"
# The name that the VMM gives it.
SAVED_MEMORY = "memory-ranges"


class VmmFailed(Exception):
    """A VMM ended, or did not do what it was told; the message has what it said."""


FAILURES = (
    *(VmmFailed, OSError, ApiError, BadBundle, config.BadConfig, Unconfined, WrongMapping),
    *(subprocess.CalledProcessError, ValueError, KeyError, TypeError),
)


@dataclass(frozen=True)
class Settings:
    """Of this driver. An empty program is looked for in PATH and in the cache."""

    program: str = ""
    cache: Path = Path.home() / ".cache" / "sandpool"
    # Outside of everything that Debian and systemd give to users, services and containers.
    uid_first: int = 1_900_000_000
    uid_count: int = 65_536
    allow_unconfined: bool = False


class CloudHypervisorVmm:
    """For hosts with KVM."""

    name = "cloud-hypervisor"
    # Of its VMs' addresses.
    transport = process.TRANSPORT

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._uids = UidRange(self._settings.uid_first, self._settings.uid_count)
        self._installation = Installation(self._settings.program, self._settings.cache)

    # -- what this host can do -------------------------------------------------------------------------------------

    async def failure(self) -> str | None:
        """Why it cannot be used here, nothing if it can, None as long as no guest image was built to prove it with."""
        if not self._settings.allow_unconfined:
            if confine.landlock_version() < confine.LANDLOCK_VERSION:
                return "this kernel cannot confine a VMM: it has no landlock, or one of before Linux 6.2"
            try:
                confine.own_user(self._uids.of_builders())
            except (Unconfined, OSError) as error:
                return str(error)
        return await self._installation.failure()

    async def probe(self) -> Acceleration:
        """Nothing at all without KVM that was proven."""
        failure = await self.failure()
        if failure is None:
            return Acceleration("none", "KVM is not proven yet: no guest image has been built")
        if failure:
            return Acceleration("none", failure)
        version = await self._installation.version()
        missing = f"; no cgroup for a VMM: {self._cgroups.missing}" if self._cgroups.missing else ""
        return Acceleration("kvm", f"boots a guest; Cloud Hypervisor {version}{missing}")

    async def fingerprint(self) -> str:
        """The VMM's version, the kernel and the CPU: a snapshot loads nowhere else."""
        facts = [str(await self._installation.version()), host_cpu()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    # -- template --------------------------------------------------------------------------------------------------

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """Boot, quiesce, freeze."""
        vm = directory / BUILDING
        with _translated("template"), ExitStack() as files:
            version = await self._installation.version()
            confinement = self._confinement(self._uids.of_builders())
            vm.mkdir(mode=0o700)
            jail = make_jail(vm, confinement)
            await put_scratch(jail, image.scratch, confinement)
            saved = make_place(jail, config.SAVED, confinement)
            memory = _make_memory(directory / MEMORY, machine, confinement)
            opened = [_open(path, files) for path in (image.kernel, image.initramfs, image.root)]
            opened.append(_open(memory, files, os.O_RDWR))
            start = Start(self._installation.program(), confinement, tuple(opened), with_us=True)
            async with self._started(start, machine, vm) as running, await Api.connect(str(vm / API)) as api:
                await api.put("vm.create", config.template(machine, *map(config.inherited, opened)))
                await api.put("vm.boot")
                await self._prove(running, confinement)
                await _before_its_end(running, quiesce(running.address))
                await api.put("vm.pause")
                # And never resumed, nor shut down, which would resume it: its memory must stay what the state says.
                await api.put("vm.snapshot", {"destination_url": SAVED_URL}, seconds=SNAPSHOT_SECONDS)
                await running.destroy()
            Bundle(str(version), image.root, read_json(saved / "config.json")).write(directory)
            await take_back(saved / "state.json", directory / STATE)
            await take_back(jail / config.SCRATCH, directory / SCRATCH)
            await take_back(memory, memory)
            shutil.rmtree(vm)
            _seal(directory)

    # -- clone -----------------------------------------------------------------------------------------------------

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> CloudHypervisorVm:
        """Start, restore, prove, resume: the guest runs no instruction in a VMM that is not confined."""
        with _translated("clone"), ExitStack() as files:
            bundle = Bundle.read(template)
            bundle.check(template, machine, await self._installation.version())
            confinement = self._confinement(self._uids.free(directory.parent))
            jail = make_jail(directory, confinement)
            await put_scratch(jail, template / SCRATCH, confinement)
            opened = [_open(path, files) for path in (bundle.root, template / MEMORY)]
            edited = config.clone(bundle.config, machine, *map(config.inherited, opened))
            put_restored(jail, edited, template / STATE, confinement)
            make_place(jail, config.SAVED, confinement)
            bundle.write(directory)
            start = Start(self._installation.program(), confinement, tuple(opened), with_us=False)
            async with self._started(start, machine, directory) as running:
                async with await Api.connect(str(directory / API)) as api:
                    await api.put("vm.restore", {"source_url": RESTORED_URL})
                    maps = Path(f"/proc/{running.pid}/maps").read_text()
                    check_private(maps, os.fstat(opened[1]).st_ino, machine.memory_bytes)
                    await self._prove(running, confinement)
                    await api.put("vm.resume")
                (directory / GUEST_ADDRESS_FILE).write_text(running.address.to_json())
        return running

    async def hibernate(self, vm: RunningVm, directory: Path) -> None:
        """Pause, save, end; the file that its memory was saved to is then mapped as a template's is."""
        with _translated("hibernate"):
            if not isinstance(vm, CloudHypervisorVm):
                raise TypeError("not a VM of this driver")
            async with _ended_on_failure(vm):
                # From here on there is no way back: what is left of it after a crash is not recovered.
                (vm.directory / GUEST_ADDRESS_FILE).unlink()
                # What a guest may have made of its VMM is not asked for its configuration: it keeps the one we know.
                Bundle.read(vm.directory).write(directory)
                async with await Api.connect(str(vm.directory / API)) as api:
                    await api.put("vm.pause")
                    self._cgroups.lift_memory(vm.directory)
                    await api.put("vm.snapshot", {"destination_url": SAVED_URL}, seconds=SNAPSHOT_SECONDS)
                await vm.destroy()
            jail = jail_of(vm.directory)
            memory = jail / config.SAVED / SAVED_MEMORY
            state = config.without_memory(read_json(jail / config.SAVED / STATE), memory.lstat().st_size)
            await take_back(memory, directory / MEMORY, dig=True)
            await take_back(jail / config.SCRATCH, directory / SCRATCH)
            (directory / STATE).write_text(json.dumps(state))
            _seal(directory)

    async def recover(self, directory: Path) -> CloudHypervisorVm | None:
        """By pid, start time and what the VMM answers; a VM that was never resumed has no address, and is killed."""
        pid, has_address = recorded_pid(directory), (directory / GUEST_ADDRESS_FILE).exists()
        for found in unrecorded_pids(directory, jail_of(directory)) if pid is None else [pid]:
            with suppress(ProcessLookupError):
                running = CloudHypervisorVm(found, directory, self._remove_cgroup)
                if has_address and await _answers(directory, found):
                    return running
                await running.destroy()
        await self._remove_cgroup(directory)
        return None

    def made(self, directory: Path) -> bool:
        """Whether the VM in directory, or what is left of it, is of this driver."""
        return jail_of(directory).is_dir()

    # -- both ------------------------------------------------------------------------------------------------------

    @cached_property
    def _cgroups(self) -> Cgroups:
        """Looked for when a VMM needs one, as that may move processes."""
        found = Cgroups.find()
        if found.missing:
            log.warning("no_cgroups", reason=found.missing)
        return found

    def _confinement(self, uid: int) -> Confinement:
        try:
            return confine.own_user(uid)
        except Unconfined:
            if not self._settings.allow_unconfined:
                raise
            return Confinement(os.geteuid(), os.getegid(), tuple(os.getgroups()), is_own=False)

    @asynccontextmanager
    async def _started(self, start: Start, machine: MachineSpec, directory: Path) -> AsyncIterator[CloudHypervisorVm]:
        """A VMM in its place, without a VM; it stays unless this fails. Raises OSError, VmmFailed."""
        running = spawn(start, directory, self._remove_cgroup)
        async with _ended_on_failure(running):
            with suppress(ProcessLookupError):  # it has ended already, and has said why
                self._cgroups.place(directory, running.pid, machine)
                confine.limit(running.pid, machine)
            yield running

    async def _prove(self, running: CloudHypervisorVm, confinement: Confinement) -> None:
        """Raises Unconfined."""
        cgroup = self._cgroups.name(running.directory)
        try:
            await confine.prove(running.pid, confinement, cgroup)
        except Unconfined as error:
            if not self._settings.allow_unconfined:
                raise
            log.warning("unconfined", directory=str(running.directory), problem=str(error))

    async def _remove_cgroup(self, directory: Path) -> None:
        await self._cgroups.remove(directory)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Whatever else goes wrong on the way."""
    try:
        yield
    except FAILURES as error:
        said = (error.stderr or b"").decode() if isinstance(error, subprocess.CalledProcessError) else ""
        raise CloneFailed(f"{what}: {error}{said and f'; {said}'}") from error


@asynccontextmanager
async def _ended_on_failure(running: CloudHypervisorVm) -> AsyncIterator[None]:
    """Leave no VMM behind, and say what it complained about. Raises VmmFailed."""
    try:
        yield
    except BaseException as error:
        await running.destroy()
        complaint = running.complaint.strip()
        if isinstance(error, FAILURES) and complaint:
            raise VmmFailed(f"{error}; {complaint}") from error
        raise


async def _before_its_end(running: CloudHypervisorVm, work: Awaitable[None]) -> None:
    """Work with a guest that may reboot or die meanwhile. Raises VmmFailed."""
    working, ended = asyncio.ensure_future(work), asyncio.ensure_future(running.exited())
    try:
        await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise VmmFailed(ended.result())
        working.result()
    finally:
        working.cancel()
        ended.cancel()


def _open(path: Path, files: ExitStack, flags: int = os.O_RDONLY) -> int:
    """For a VMM, which may not be able to reach it by its path. Raises OSError."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    files.callback(os.close, descriptor)
    return descriptor


def _make_memory(path: Path, machine: MachineSpec, confinement: Confinement) -> Path:
    path.touch(mode=0o600)
    os.truncate(path, machine.memory_bytes)
    confinement.take(path)
    return path


def _seal(directory: Path) -> None:
    """Nobody writes into a bundle by mistake: unchanged pages of every clone are those of its files."""
    for path in directory.iterdir():
        path.chmod(0o444)


async def _answers(directory: Path, pid: int) -> bool:
    try:
        async with await Api.connect(str(directory / API)) as api:
            answer = await api.get("vmm.ping", seconds=PING_SECONDS)
    except (OSError, ApiError):
        return False
    return isinstance(answer, dict) and answer.get("pid") == pid
