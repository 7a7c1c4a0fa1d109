"""The fake driver passes the behaviour suite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.drivers.fake.driver import TEMPLATE_FILE
from node_agent.vmm import CloneFailed, Image

from .site import Driver, Site, open_site
from .vmm_suite import *  # noqa: F403

NOTHING = Path("/dev/null")


@pytest.fixture(scope="module")
def whole_run() -> Iterator[Site]:
    """One template."""
    image = Image(NOTHING, NOTHING, NOTHING, NOTHING, "none")
    damages = {"nothing is there": lambda template: (template / TEMPLATE_FILE).unlink()}
    with open_site(Driver("node_agent.drivers.fake.driver:FakeVmm", False, image, damages)) as site:
        yield site


async def test_processes_do_not_hibernate(site: Site, tmp_path: Path) -> None:
    vm_id = await site.ready()
    with pytest.raises(CloneFailed, match="needs VMs"):
        await site.hibernate(vm_id, tmp_path / "bundle")
    assert site.processes() == []
