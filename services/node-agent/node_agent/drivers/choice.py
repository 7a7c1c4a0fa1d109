"""Cloud Hypervisor where it is proven to work, QEMU else: decided as soon as a guest image can prove it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import structlog

from node_agent.vmm import Acceleration, GuestAddress, Image, MachineSpec, RunningVm, Vmm

log = structlog.get_logger("drivers")


class Preferred(Vmm, Protocol):
    """A driver that may not work here. transport: of the addresses of its VMs."""

    transport: str

    async def failure(self) -> str | None:
        """Why it cannot be used, nothing if it can, None as long as nobody can tell."""

    def made(self, directory: Path) -> bool:
        """Whether the VM in directory, or what is left of it, is of this driver."""


class ChosenVmm:
    """One of two drivers for everything new; what exists already belongs to the driver that made it."""

    def __init__(self, preferred: Preferred, other: Vmm) -> None:
        self._preferred, self._other = preferred, other
        self._chosen: Vmm | None = None
        self._reason = ""

    @property
    def name(self) -> str:
        """Of the chosen one; until then of the one that needs no proof."""
        return (self._chosen or self._other).name

    async def _choose(self) -> Vmm:
        if self._chosen is None:
            failure = await self._preferred.failure()
            if failure is None:
                self._reason = f"{self._preferred.name} is used as soon as a guest image proves that KVM works"
                return self._other
            self._chosen = self._other if failure else self._preferred
            self._reason = failure and f"{self._preferred.name} is not used: {failure}"
            log.info("driver_chosen", driver=self._chosen.name, reason=self._reason)
        return self._chosen

    async def probe(self) -> Acceleration:
        """Of the chosen one, and why it is not the preferred one."""
        acceleration = await (await self._choose()).probe()
        detail = "; ".join(filter(None, (acceleration.detail, self._reason)))
        return Acceleration(acceleration.name, detail)

    async def fingerprint(self) -> str:
        """Of the chosen one, which is decided by then: an image is there before its template."""
        return await (await self._choose()).fingerprint()

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """By the chosen one."""
        await (await self._choose()).build(image, machine, directory, quiesce)

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> RunningVm:
        """By the chosen one: a template of the other has another address and is built anew."""
        return await (await self._choose()).clone(template, machine, directory)

    async def hibernate(self, vm: RunningVm, directory: Path) -> None:
        """By the one that runs it."""
        is_preferred = vm.address.transport == self._preferred.transport
        await (self._preferred if is_preferred else self._other).hibernate(vm, directory)

    async def recover(self, directory: Path) -> RunningVm | None:
        """By the one that made it."""
        maker: Vmm = self._preferred if self._preferred.made(directory) else self._other
        return await maker.recover(directory)
