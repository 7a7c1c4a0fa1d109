"""What a clone is made from, and what a hibernated VM leaves: four files in one directory."""

import asyncio
import errno
import json
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.drivers.cloud_hypervisor.config import BadConfig, Config
from node_agent.drivers.cloud_hypervisor.probe import NotUsable, Version
from node_agent.vmm import MachineSpec

BUNDLE_FILE, STATE, MEMORY, SCRATCH = "bundle.json", "state.json", "memory", "scratch"
# 44 KB for one virtual CPU and six devices.
MAX_STATE_BYTES = 16 << 20


class BadBundle(Exception):
    """It is damaged, or of another VMM or machine."""


@dataclass(frozen=True)
class Bundle:
    """Which VMM wrote it, the image's root, and the configuration that the VMM had."""

    version: str
    root: Path
    config: Config

    def write(self, directory: Path) -> None:
        """Into directory. Raises OSError."""
        values = {"version": self.version, "root": str(self.root), "config": self.config}
        (directory / BUNDLE_FILE).write_text(json.dumps(values))

    @classmethod
    def read(cls, directory: Path) -> "Bundle":
        """Raises OSError, BadBundle."""
        try:
            values = json.loads((directory / BUNDLE_FILE).read_text())
            return cls(str(values["version"]), Path(values["root"]), dict(values["config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadBundle(f"{BUNDLE_FILE} is damaged: {error!r}") from error

    def check(self, directory: Path, machine: MachineSpec, version: Version) -> None:
        """Whether its files can be those of machine, for a VMM of that version. Raises OSError, BadBundle."""
        try:
            written_by = Version.parse(self.version)
        except NotUsable as error:
            raise BadBundle(str(error)) from error
        if written_by.major != version.major:
            raise BadBundle(f"it was frozen by Cloud Hypervisor {self.version}, and this is {version}")
        for name, size in ((MEMORY, machine.memory_bytes), (SCRATCH, machine.disk_bytes)):
            if (directory / name).stat().st_size != size:
                raise BadBundle(f"its {name} has another size")


def read_json(path: Path) -> Any:
    """Of a file that a VMM wrote. Raises OSError, BadConfig."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_STATE_BYTES:
            raise BadConfig(f"{path.name} is no file of a snapshot")
        try:
            return json.loads(file.read(MAX_STATE_BYTES))
        except (ValueError, RecursionError) as error:
            raise BadConfig(f"{path.name} is no JSON") from error


async def take_back(source: Path, target: Path, *, dig: bool = False) -> None:
    """Move a file out of the reach of the VMM that wrote it and has ended, close it to writing, and dig out its zeros.

    Raises OSError, BadBundle, subprocess.CalledProcessError.
    """
    if not stat.S_ISREG(source.lstat().st_mode):
        raise BadBundle(f"{source.name} is no file")
    os.chown(source, os.geteuid(), os.getegid(), follow_symlinks=False)
    if dig:
        command = ["fallocate", "--dig-holes", str(source)]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    source.chmod(0o444)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        await copy_sparse(source, target)
        target.chmod(0o444)


async def copy_sparse(source: Path, target: Path) -> None:
    """Only the allocated blocks, or none at all where the file system shares them."""
    command = ["cp", "--sparse=always", "--reflink=auto", "--no-preserve=mode", str(source), str(target)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
