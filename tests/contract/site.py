"""Where the suite keeps its VMs: directories, a real tunnel, stock channels, and an eye on what is left."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.guest import set_clock
from node_agent.vmm import GUEST_ADDRESS_FILE, GuestAddress, Image, MachineSpec, RunningVm, Vmm
from sandpool.guest.v1 import guest_pb2, guest_pb2_grpc
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import execution_pb2_grpc, file_pb2_grpc
from service_kit import capability, rpc

from ..unit.guest_agent.conftest import Outcome, gather

MACHINE = MachineSpec(1, 512 << 20, 1 << 30)
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Driver:
    """What the suite must know about one. is_vm: its clones have a kernel of their own."""

    path: str
    is_vm: bool
    image: Image
    # Ways to break a copy of a template, by name.
    damages: dict[str, Callable[[Path], None]]
    # So many are compared with one another.
    unique_clones: int = 8
    # Of these, how many there are at the same time: on a slow host, few.
    at_a_time: int = 8

    def make(self) -> Vmm:
        """A new driver object, as after a start of the agent."""
        module, _, name = self.path.partition(":")
        vmm: Vmm = getattr(importlib.import_module(module), name)()
        return vmm


class Guest:
    """Stubs on one connection to one VM."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.executions = execution_pb2_grpc.ExecutionServiceStub(channel)
        self.files = file_pb2_grpc.FileServiceStub(channel)
        self.life = guest_pb2_grpc.GuestServiceStub(channel)

    async def code(self, source: str) -> Outcome:
        """Run Python."""
        return await gather(self.executions.Execute(pb.ExecuteRequest(code=pb.Code(source=source))))

    async def shell(self, text: str) -> Outcome:
        """Run a command."""
        return await gather(self.shell_events(text))

    def shell_events(self, text: str) -> AsyncIterator[pb.ExecutionEvent]:
        """Its events as they come."""
        events: AsyncIterator[pb.ExecutionEvent]
        events = self.executions.Execute(pb.ExecuteRequest(command=pb.Command(shell=text)))
        return events


@dataclass
class Site:
    """base/vms/ID per VM, as a node agent has it."""

    driver: Driver
    base: Path
    tunnel: str
    key: Ed25519PrivateKey
    vms: dict[str, RunningVm] = field(default_factory=dict)

    @property
    def template(self) -> Path:
        """Of the whole run."""
        return self.base / "template"

    def directory(self, vm_id: str) -> Path:
        """Of a VM."""
        return self.base / "vms" / vm_id

    def reserve(self) -> str:
        """A new VM's id and directory."""
        vm_id = f"v{next(_numbers)}"
        self.directory(vm_id).mkdir()
        return vm_id

    async def clone(self, bundle: Path | None = None) -> str:
        """A new VM's id; of the template, or of a hibernated VM."""
        vm_id = self.reserve()
        self.vms[vm_id] = await self.driver.make().clone(bundle or self.template, MACHINE, self.directory(vm_id))
        return vm_id

    async def ready(self) -> str:
        """A clone that is prepared."""
        vm_id = await self.clone()
        await self.prepare(vm_id)
        return vm_id

    async def hibernate(self, vm_id: str, bundle: Path) -> None:
        """By a driver object that has not cloned it. bundle is made."""
        bundle.mkdir()
        await self.driver.make().hibernate(self.vms[vm_id], bundle)

    async def resume(self, bundle: Path, was: str, name: str = "") -> str:
        """The new VM's id; it was another when it hibernated, and may keep that name inside."""
        vm_id = await self.clone(bundle)
        await self.prepare(vm_id, was, name)
        return vm_id

    async def prepare(
        self, vm_id: str, was: str = "", name: str = "", seconds_ahead: float = 0.0
    ) -> guest_pb2.PrepareResponse:
        """As the node agent does. was: what a hibernated VM was prepared as; name: prepare it as that."""
        request = guest_pb2.PrepareRequest(
            vm_id=name or vm_id,
            entropy=os.urandom(256),
            machine_id=os.urandom(16).hex(),
            hostname=name or vm_id,
            max_processes=256,
            resumes_vm_id=was,
        )
        async with self.guest(vm_id) as guest:
            await guest.channel.channel_ready()
            request.now.FromNanoseconds(time.time_ns() + int(seconds_ahead * 1e9))
            response: guest_pb2.PrepareResponse = await guest.life.Prepare(request, wait_for_ready=True, timeout=60)
            if not seconds_ahead:
                await set_clock(guest.life)
        return response

    def token(self, vm_id: str) -> str:
        """Permission to dial a VM."""
        return capability.sign(self.key, vm_id, time.time() + 3600)

    @asynccontextmanager
    async def guest(self, vm_id: str, tunnel: str = "") -> AsyncIterator[Guest]:
        """A connection of its own to a VM. What fails on it says how the VM has ended, if it has."""
        async with rpc.tunnel_channel(vm_id, tunnel or self.tunnel, self.token(vm_id)) as channel:
            try:
                yield Guest(channel)
            except grpc.aio.AioRpcError as error:
                with suppress(TimeoutError, KeyError):
                    async with asyncio.timeout(1):
                        error.add_note(f"{vm_id}: {await self.vms[vm_id].exited()}")
                raise

    async def quiesce(self, address: GuestAddress) -> None:
        """Through the tunnel, under a name of its own, as the node agent does."""
        vm_id = self.reserve()
        (self.directory(vm_id) / GUEST_ADDRESS_FILE).write_text(address.to_json())
        async with self.guest(vm_id) as guest:
            await guest.life.Quiesce(guest_pb2.QuiesceRequest(), wait_for_ready=True, timeout=300)
        shutil.rmtree(self.directory(vm_id))

    async def clean(self) -> None:
        """Destroy every VM of a test, and what has hibernated; what still runs then is a leak."""
        await asyncio.gather(*(vm.destroy() for vm in self.vms.values()))
        for directory in (self.base / "vms").iterdir():
            shutil.rmtree(directory)
        shutil.rmtree(self.base / "bundles", ignore_errors=True)
        assert self.processes() == []

    def processes(self) -> list[str]:
        """Command lines of whatever runs in or with something of ours, but the tunnel."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                mine = str(self.base) in line or str((path / "cwd").readlink()).startswith(str(self.base))
            except OSError:
                continue
            if mine and "node_agent.tunnel" not in line:
                found.append(line)
        return found


@contextmanager
def open_site(driver: Driver) -> Iterator[Site]:
    """A tunnel and a template for a whole module."""
    base, key = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp")), Ed25519PrivateKey.generate()
    for name in ("vms", "keys", "template"):
        (base / name).mkdir()
    (base / "keys" / "suite.pub").write_bytes(key.public_key().public_bytes_raw())
    command = [sys.executable, "-m", "node_agent.tunnel", "--vms", str(base / "vms"), "--keys", str(base / "keys")]
    tunnel = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert tunnel.stdout is not None
    try:
        site = Site(driver, base, tunnel.stdout.readline().split()[2], key)
        asyncio.run(driver.make().build(driver.image, MACHINE, site.template, site.quiesce))
        assert site.processes() == [], site.processes()
        yield site
    finally:
        tunnel.terminate()
        tunnel.wait()
        tunnel.stdout.close()
        shutil.rmtree(base)


def digest(directory: Path) -> dict[str, str]:
    """Of every file."""
    found = {}
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
