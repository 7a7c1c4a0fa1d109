"""Where templates get their guest images from: built by the image package for VMs, nothing at all for the fake."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node_agent.image_process import build
from node_agent.vmm import CloneFailed, Image, MachineSpec

Progress = Callable[[str, float], None]
BUILTIN = "python"


@dataclass(frozen=True)
class BuiltImages:
    """Images of the image builder, which runs as a process: it takes minutes and can be ended at any moment.

    make_scratch blocks and raises RuntimeError when it fails.
    """

    cache_dir: Path
    make_scratch: Callable[[Path, int], None]

    async def image(self, name: str, machine: MachineSpec, work: Path, progress: Progress) -> Image:
        """Raises LookupError, CloneFailed."""
        _check(name)
        try:
            directory = await build(self.cache_dir, progress)
            await asyncio.to_thread(self.make_scratch, work / "scratch", machine.disk_bytes)
        except (OSError, RuntimeError) as error:
            raise CloneFailed(f"guest image: {error}") from error
        files = (directory / "vmlinux", directory / "initramfs", directory / "root.erofs")
        return Image(*files, work / "scratch", directory.name)


class NoImages:
    """For the fake driver, which boots nothing."""

    async def image(self, name: str, machine: MachineSpec, work: Path, progress: Progress) -> Image:
        """Raises LookupError."""
        _check(name)
        nothing = Path("/dev/null")
        return Image(nothing, nothing, nothing, nothing, "none")


def _check(name: str) -> None:
    if name != BUILTIN:
        raise LookupError(f"no built-in image {name!r}; there is {BUILTIN!r}")
