"""The Cloud Hypervisor driver passes the behaviour suite, on real VMs with KVM."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.vmm import Image
from sandpool_image.build import build, make_scratch

from .site import MACHINE, Driver, Site, open_site
from .vmm_suite import *  # noqa: F403

pytestmark = pytest.mark.cloud_hypervisor
CACHE = Path.home() / ".cache" / "sandpool"

DAMAGES = {
    "half a state": lambda template: cut(template / "state.json", 10_000),
    "no state": lambda template: (template / "state.json").unlink(),
    "an empty state": lambda template: cut(template / "state.json", 0),
    "half a memory": lambda template: cut(template / "memory", MACHINE.memory_bytes // 2),
    "no memory": lambda template: (template / "memory").unlink(),
    "no scratch disk": lambda template: (template / "scratch").unlink(),
    "half a scratch disk": lambda template: cut(template / "scratch", MACHINE.disk_bytes // 2),
    "no description": lambda template: (template / "bundle.json").unlink(),
    "half a description": lambda template: cut(template / "bundle.json", 10),
    "another description": lambda template: (template / "bundle.json").write_text('{"version": "v53.0"}'),
}


def cut(path: Path, size: int) -> None:
    path.chmod(0o600)
    os.truncate(path, size)


@pytest.fixture(scope="module")
def whole_run() -> Iterator[Site]:
    """One template, of the image of this source tree."""
    paths = build(CACHE, lambda message, _: print(message))
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        scratch = Path(directory) / "scratch"
        make_scratch(scratch, MACHINE.disk_bytes)
        image = Image(paths.kernel, paths.initramfs, paths.root, scratch, paths.image_id)
        path = "node_agent.drivers.cloud_hypervisor.driver:CloudHypervisorVmm"
        with open_site(Driver(path, True, image, DAMAGES)) as site:
            yield site
