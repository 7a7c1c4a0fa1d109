"""Clones a VM and dies at once, as a killed agent does: `python -m tests.contract.crash DRIVER TEMPLATE DIRECTORY`."""

import asyncio
import importlib
import os
import signal
import sys
from pathlib import Path

from node_agent.vmm import MachineSpec


async def clone_and_die(driver: str, template: str, directory: str) -> None:
    """Nothing is flushed, closed or told."""
    module, _, name = driver.partition(":")
    vmm = getattr(importlib.import_module(module), name)()
    await vmm.clone(Path(template), MachineSpec(1, 512 << 20, 1 << 30), Path(directory))
    os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(clone_and_die(*sys.argv[1:]))
