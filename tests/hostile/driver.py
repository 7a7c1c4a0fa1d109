"""VMs by the fake driver whose guest agent is a hostile one, where the pool's image is named after what it does."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from node_agent.drivers.fake.driver import FakeVm, FakeVmm
from node_agent.vmm import Acceleration, GuestAddress, Image, MachineSpec

HONEST = "python"
PROGRAM_FILE = "program"


class NamedImages:
    """Any name is an image: it becomes the image's id."""

    async def image(self, name: str, machine: MachineSpec, work: Path, progress: Callable[[str, float], None]) -> Image:
        """Nothing is booted."""
        nothing = Path("/dev/null")
        return Image(nothing, nothing, nothing, nothing, name)


class HostileVmm:
    """The fake driver; HONEST runs our guest agent, every other image `python -m tests.hostile.guest --life IMAGE`."""

    name = "fake"

    async def probe(self) -> Acceleration:
        """As the fake."""
        return await FakeVmm().probe()

    async def fingerprint(self) -> str:
        """As the fake."""
        return await FakeVmm().fingerprint()

    async def build(
        self,
        image: Image,
        machine: MachineSpec,
        directory: Path,
        quiesce: Callable[[GuestAddress], Awaitable[None]],
    ) -> None:
        """Write down which program its clones run."""
        await _vmm(image.image_id).build(image, machine, directory, quiesce)
        (directory / PROGRAM_FILE).write_text(image.image_id)

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> FakeVm:
        """Start the template's program."""
        return await _vmm((template / PROGRAM_FILE).read_text()).clone(template, machine, directory)

    async def recover(self, directory: Path) -> FakeVm | None:
        """As the fake."""
        return await FakeVmm().recover(directory)


def _vmm(image_id: str) -> FakeVmm:
    if image_id == HONEST:
        return FakeVmm()
    return FakeVmm((sys.executable, "-m", "tests.hostile.guest", "--life", image_id))
