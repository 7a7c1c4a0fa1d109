"""The node agent of today, whose templates hold an old guest: `python -m tests.compat.node_agent --config FILE`."""

import sys

from node_agent import __main__ as composition
from node_agent.drivers.fake.driver import FakeVmm
from node_agent.images import NoImages

if __name__ == "__main__":
    composition.choose = lambda _settings: (FakeVmm((sys.executable, "-m", "tests.compat.guest_1")), NoImages())
    composition.main()
