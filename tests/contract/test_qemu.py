"""The QEMU driver passes the behaviour suite, on real VMs."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.vmm import Image
from sandpool_image.build import build, make_scratch

from .hibernate_suite import *  # noqa: F403
from .site import MACHINE, Driver, Site, open_site
from .vmm_suite import *  # noqa: F403

pytestmark = pytest.mark.vm
CACHE = Path.home() / ".cache" / "sandpool"


DAMAGES = {
    "half a state": lambda template: os.truncate(template / "state", 100_000),
    "no state": lambda template: (template / "state").unlink(),
    "an empty state": lambda template: os.truncate(template / "state", 0),
    "half a memory": lambda template: os.truncate(template / "memory", MACHINE.memory_bytes // 2),
    "no memory": lambda template: (template / "memory").unlink(),
    "no scratch disk": lambda template: (template / "scratch").unlink(),
    "no description": lambda template: (template / "image.json").unlink(),
    "half a description": lambda template: os.truncate(template / "image.json", 10),
    "another image": lambda template: (template / "image.json").write_text('{"image": {"kernel": "x"}}'),
}


@pytest.fixture(scope="module")
def whole_run() -> Iterator[Site]:
    """One template, of the image of this source tree."""
    paths = build(CACHE, lambda message, _: print(message))
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        scratch = Path(directory) / "scratch"
        make_scratch(scratch, MACHINE.disk_bytes)
        image = Image(paths.kernel, paths.initramfs, paths.root, scratch, paths.image_id)
        with open_site(Driver("node_agent.drivers.qemu.driver:QemuVmm", True, image, DAMAGES, 200)) as site:
            yield site
