"""Where templates get their guest images from: built by the image package for VMs, nothing at all for the fake."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node_agent.vmm import CloneFailed, Image, MachineSpec

Progress = Callable[[str, float], None]
BUILTIN = "python"


class Files(Protocol):
    """What an image builder answers."""

    @property
    def kernel(self) -> Path:
        """A file."""

    @property
    def initramfs(self) -> Path:
        """A file."""

    @property
    def root(self) -> Path:
        """A file."""

    @property
    def image_id(self) -> str:
        """Content address."""


@dataclass(frozen=True)
class BuiltImages:
    """Images of the image builder. build and make_scratch block and raise RuntimeError when a step fails."""

    cache_dir: Path
    build: Callable[[Path, Progress], Files]
    make_scratch: Callable[[Path, int], None]

    async def image(self, name: str, machine: MachineSpec, work: Path, progress: Progress) -> Image:
        """Raises LookupError, CloneFailed."""
        _check(name)
        try:
            files = await asyncio.to_thread(self.build, self.cache_dir, progress)
            await asyncio.to_thread(self.make_scratch, work / "scratch", machine.disk_bytes)
        except (OSError, RuntimeError) as error:
            raise CloneFailed(f"guest image: {error}") from error
        return Image(files.kernel, files.initramfs, files.root, work / "scratch", files.image_id)


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
