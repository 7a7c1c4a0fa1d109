"""The directory that a VMM owns, filled before it starts: nothing of ours is written there while it lives."""

import asyncio
import json
import subprocess
from pathlib import Path

from node_agent.drivers.cloud_hypervisor import config
from node_agent.drivers.cloud_hypervisor.confine import Confinement
from node_agent.drivers.cloud_hypervisor.process import jail_of


def make_jail(directory: Path, confinement: Confinement) -> Path:
    """Of the VM in directory; with it, its user id is taken. Raises OSError."""
    jail = jail_of(directory)
    jail.mkdir(mode=0o700)
    confinement.take(jail)
    return jail


async def put_scratch(jail: Path, source: Path, confinement: Confinement) -> None:
    """A copy of a disk. Raises OSError, subprocess.CalledProcessError."""
    target = jail / config.SCRATCH
    await copy_sparse(source, target)
    target.chmod(0o600)
    confinement.take(target)


def put_snapshot(jail: Path, vm: config.Config, state: Path, confinement: Confinement) -> None:
    """What vm.restore reads. Raises OSError."""
    snapshot = make_snapshot(jail, confinement)
    (snapshot / "config.json").write_text(json.dumps(vm))
    (snapshot / "state.json").write_bytes(state.read_bytes())
    for path in snapshot.iterdir():
        confinement.take(path)


def make_snapshot(jail: Path, confinement: Confinement) -> Path:
    """The directory that vm.snapshot fills. Raises OSError."""
    snapshot = jail / config.SNAPSHOT
    snapshot.mkdir(mode=0o700)
    confinement.take(snapshot)
    return snapshot


async def copy_sparse(source: Path, target: Path) -> None:
    """Only the allocated blocks, or none at all where the file system shares them."""
    command = ["cp", "--sparse=always", "--reflink=auto", "--no-preserve=mode", str(source), str(target)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
