"""The node agent with a driver of the tests: `python -m tests.hostile.node_agent --config FILE`."""

from node_agent import __main__ as composition
from node_agent import guest
from node_agent.config import Config
from node_agent.templates import ImageSource
from node_agent.vmm import Vmm

from .driver import HostileVmm, NamedImages


def _choose(_settings: Config) -> tuple[Vmm, ImageSource]:
    return HostileVmm(), NamedImages()


if __name__ == "__main__":
    # Silence is silence after a shorter time too; an honest guest takes a second on a host that has too much to do.
    guest.PREPARE_SECONDS, guest.SEAL_SECONDS = 4.0, 2.0
    composition.choose = _choose
    composition.main()
