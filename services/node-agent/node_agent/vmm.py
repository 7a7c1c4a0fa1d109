"""The one interface between the node agent and a hypervisor. Only drivers know that there is one."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

GUEST_ADDRESS_FILE = "guest.json"
# Below its directory, build() has the VM that it freezes here; recover() ends what a killed agent has left of it.
BUILDING = "vm"


@dataclass(frozen=True)
class GuestAddress:
    """How the tunnel reaches a guest agent: written by the driver to GUEST_ADDRESS_FILE in the VM's directory.

    transport is "unix" (one path), "hybrid-vsock" (one path, port) or "virtio-serial" (a path per port of the VM).
    """

    transport: str
    paths: tuple[str, ...]
    port: int = 0

    def to_json(self) -> str:
        """For the file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "GuestAddress":
        """From the file. Raises ValueError or KeyError."""
        values = json.loads(text)
        return cls(str(values["transport"]), tuple(map(str, values["paths"])), int(values["port"]))


@dataclass(frozen=True)
class Acceleration:
    """What runs the guest's instructions: name is "kvm", "emulation" or "none"; detail says why, for humans."""

    name: str
    detail: str


@dataclass(frozen=True)
class MachineSpec:
    """What a VM gets; part of its template."""

    vcpus: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Image:
    """A guest image on this host. scratch is an empty, formatted disk of the machine's size."""

    kernel: Path
    initramfs: Path
    root: Path
    scratch: Path
    image_id: str


class CloneFailed(Exception):
    """The VMM refused or died; the message is for humans. Nothing of the VM is left running."""


class RunningVm(Protocol):
    """A VM with a living VMM process."""

    @property
    def address(self) -> GuestAddress:
        """Where its guest agent is."""

    async def exited(self) -> str:
        """Wait for the end of the VM, whoever caused it. Returns a short detail for humans."""

    async def destroy(self) -> None:
        """Kill and reap. Idempotent. The directory stays: it is the caller's."""


class Vmm(Protocol):
    """One hypervisor. Lifecycle: probe, then build once per template, then clone, dial by address, destroy, recover.

    A VM can be hibernated too: what that leaves is cloned as a template is.
    """

    @property
    def name(self) -> str:
        """As in Node.driver."""

    async def probe(self) -> Acceleration:
        """What this host can do, proven and not assumed; cached per host and boot."""

    async def fingerprint(self) -> str:
        """Everything of VMM and host that a template depends on: part of its content address. Raises OSError."""

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """Boot, await quiesce, freeze into directory (empty; complete and immutable afterwards). Raises CloneFailed."""

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> RunningVm:
        """A resumed copy-on-write clone whose files are all in directory. Raises CloneFailed."""

    async def hibernate(self, vm: RunningVm, directory: Path) -> None:
        """Freeze a live clone into directory (empty; complete and immutable afterwards) and end it.

        clone() of that directory resumes it with all its memory mapped privately; more than one clone of it is a fork,
        and each must be made unique again. Connections do not survive. Raises CloneFailed; the VM is gone then too.
        """

    async def recover(self, directory: Path) -> RunningVm | None:
        """The VM that an earlier agent left in directory, if it lives and is provably ours; kills leftovers if not."""
