"""The directory that a VMM owns, filled before it starts: nothing of ours is written there while it lives."""

import json
from pathlib import Path

from node_agent.drivers.cloud_hypervisor import config
from node_agent.drivers.cloud_hypervisor.bundle import copy_sparse
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


def put_restored(jail: Path, vm: config.Config, state: Path, confinement: Confinement) -> None:
    """What vm.restore reads. Raises OSError."""
    restored = make_place(jail, config.RESTORED, confinement)
    (restored / "config.json").write_text(json.dumps(vm))
    (restored / "state.json").write_bytes(state.read_bytes())
    for path in restored.iterdir():
        confinement.take(path)


def make_place(jail: Path, name: str, confinement: Confinement) -> Path:
    """A directory in it, such as vm.snapshot wants one. Raises OSError."""
    place = jail / name
    place.mkdir(mode=0o700)
    confinement.take(place)
    return place
