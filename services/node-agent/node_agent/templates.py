"""Templates of this node by content address: built once, shared by whoever asks, never changed in place."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from node_agent import metrics
from node_agent.vmm import BUILDING, CloneFailed, GuestAddress, Image, MachineSpec, Vmm
from sandpool.node.v1 import node_pb2 as pb
from sandpool.v1 import pool_pb2

log = structlog.get_logger("templates")

Progress = Callable[[str, float], None]
# Changes when what a template directory holds does.
FORMAT = 3
# A template that no VM was cloned from for so long is removed at the next start of an agent.
UNUSED_SECONDS = 7 * 86_400
COMPLETE_FILE = "template"
# In the directory of a build: what becomes the template.
TARGET = "template"
# Of the whole progress: before it the image is made, after it the template boots.
BOOT_FRACTION = 0.6


class ImageSource(Protocol):
    """Makes guest images."""

    async def image(self, name: str, machine: MachineSpec, work: Path, progress: Progress) -> Image:
        """The built-in image of that name, with an empty scratch disk in work. Raises CloneFailed, LookupError."""


Quiesce = Callable[[GuestAddress], Awaitable[None]]


class Templates:
    """CACHE/templates/ID: a complete one has COMPLETE_FILE, written last, and every file that it names."""

    def __init__(self, cache_dir: Path, vmm: Vmm, images: ImageSource, quiesce: Quiesce) -> None:
        self._root = cache_dir / "templates"
        self._root.mkdir(parents=True, exist_ok=True)
        self._vmm = vmm
        self._images = images
        self._quiesce = quiesce

    def find(self, template_id: str) -> tuple[Path, pb.Template] | None:
        """The directory of a complete template, marked as used now; None if there is none."""
        directory = self._root / template_id
        try:
            template = _read(directory)
            os.utime(directory / COMPLETE_FILE)
        except (OSError, ValueError):
            return None
        return directory, template

    def list(self) -> list[pb.Template]:
        """All that are complete."""
        found = []
        for directory in sorted(self._root.iterdir()):
            with suppress(OSError, ValueError):
                found.append(_read(directory))
        return found

    async def build(self, source: pool_pb2.TemplateSource, machine: MachineSpec, progress: Progress) -> pb.Template:
        """The template, from the store or built now. Raises CloneFailed, LookupError for an unknown image."""
        with _work_directory(self._root) as work:
            image = await self._images.image(
                source.builtin, machine, work, lambda text, part: progress(text, part * BOOT_FRACTION)
            )
            template_id = await self._address(image, machine)
            async with _lock(self._root / f"{template_id}.lock", progress):
                found = self.find(template_id)
                if found is not None:
                    return found[1]
                progress("booting the template and importing the popular libraries", BOOT_FRACTION)
                begun = time.monotonic()
                target = work / TARGET
                target.mkdir()
                with metrics.timed(metrics.BUILD_SECONDS):
                    await self._vmm.build(image, machine, target, self._quiesce)
                template = pb.Template(template_id=template_id, source=source)
                template.resources.vcpus, template.resources.memory_bytes = machine.vcpus, machine.memory_bytes
                template.resources.disk_bytes = machine.disk_bytes
                _complete(target, template)
                await asyncio.to_thread(_sync, target)
                shutil.rmtree(self._root / template_id, ignore_errors=True)
                target.rename(self._root / template_id)
                log.info("template_built", template_id=template_id, seconds=round(time.monotonic() - begun, 1))
        progress("template ready", 1.0)
        return template

    async def _address(self, image: Image, machine: MachineSpec) -> str:
        fingerprint = await self._vmm.fingerprint()  # first: it may take this to decide which driver it is
        inputs = [FORMAT, image.image_id, self._vmm.name, fingerprint, asdict(machine)]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    async def remove_abandoned(self) -> None:
        """At the start of an agent: builds of agents that were killed, and the VMs that were about to be frozen."""
        for directory in self._root.glob(".build-*"):
            with suppress(OSError), (directory / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                running = await self._vmm.recover(directory / TARGET / BUILDING)
                if running is not None:
                    await running.destroy()
                shutil.rmtree(directory)
                log.info("build_removed", directory=directory.name)

    def remove_unused(self) -> None:
        """At the start of an agent, with what is half removed. A running clone keeps what it has mapped."""
        for directory in filter(Path.is_dir, self._root.glob("[0-9a-f]*")):
            with suppress(OSError), (self._root / f"{directory.name}.lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - _last_used(directory) > UNUSED_SECONDS:
                    log.info("template_removed", template_id=directory.name)
                    (directory / COMPLETE_FILE).unlink(missing_ok=True)  # first: without it, it is no template
                    shutil.rmtree(directory)


def _complete(directory: Path, template: pb.Template) -> None:
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    text = json.dumps({"template": template.SerializeToString().hex(), "sizes": sizes})
    (directory / COMPLETE_FILE).write_text(text)


def _read(directory: Path) -> pb.Template:
    """What _complete() wrote, if all of it is still there. Raises OSError, ValueError."""
    try:
        values = json.loads((directory / COMPLETE_FILE).read_text())
        template = pb.Template.FromString(bytes.fromhex(values["template"]))
        is_whole = all((directory / name).stat().st_size == size for name, size in values["sizes"].items())
    except (DecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(repr(error)) from error
    if template.template_id != directory.name or not is_whole:
        raise ValueError("of another template, or only a part of one")
    return template


def _last_used(directory: Path) -> float:
    """Never, if it is not complete."""
    try:
        return (directory / COMPLETE_FILE).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync(directory: Path) -> None:
    """Unlike a VM, a template outlives a crash of the host: what looks complete must be on the disk. Raises OSError."""
    for path in (*directory.iterdir(), directory):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _work_directory:  # noqa: N801
    """A directory that is locked while its process lives."""

    def __init__(self, root: Path) -> None:
        self._path = root / f".build-{os.urandom(8).hex()}"

    def __enter__(self) -> Path:
        self._path.mkdir(mode=0o700)
        self._file = (self._path / "lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._file.close()


@asynccontextmanager
async def _lock(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Between the agents of one host."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another agent of this host builds this template", BOOT_FRACTION)
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


__all__ = ["CloneFailed", "ImageSource", "Progress", "Templates"]
