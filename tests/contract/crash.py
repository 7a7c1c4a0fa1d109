"""Clones a VM and dies at once, as a killed agent does: `python -m tests.contract.crash DRIVER TEMPLATE DIRECTORY`.

With a BUNDLE as well it dies in the middle of the VM's hibernation.
"""

import asyncio
import importlib
import os
import signal
import sys
from pathlib import Path

from node_agent.vmm import MachineSpec


async def clone_and_die(driver: str, template: str, directory: str, bundle: str = "") -> None:
    """Nothing is flushed, closed or told."""
    module, _, name = driver.partition(":")
    vmm = getattr(importlib.import_module(module), name)()
    vm = await vmm.clone(Path(template), MachineSpec(1, 512 << 20, 1 << 30), Path(directory))
    if bundle:
        hibernating = asyncio.create_task(vmm.hibernate(vm, Path(bundle)))
        while not any(Path(bundle).iterdir()) and not hibernating.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(clone_and_die(*sys.argv[1:]))
