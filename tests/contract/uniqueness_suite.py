"""No two clones are alike: as many as the driver is worth. A module that imports this gives the fixture site."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterable, Mapping

from .conversation import say
from .site import Site

CLOCK_SECONDS, CLOCK_TRIES = 1.0, 50
# The very first thing that a clone does; numpy is not there in tests without VMs.
FIRST_CELL = """
import os
seen = {"os.urandom": os.urandom(16).hex()}
with open("/dev/urandom", "rb", buffering=0) as device:
    seen["/dev/urandom"] = device.read(16).hex()
import json, random, secrets, uuid
seen["uuid4"], seen["secrets"] = str(uuid.uuid4()), secrets.token_hex(16)
seen["random"], seen["Random()"] = random.random(), random.Random().random()
try:
    import numpy, sympy.core.random
except ImportError:
    pass
else:
    seen["numpy.random"], seen["default_rng"] = numpy.random.random(), numpy.random.default_rng().random()
    seen["sympy"] = sympy.core.random.random()
print(json.dumps(seen))
"""
NAMES = {"boot_id": "/proc/sys/kernel/random/boot_id", "machine_id": "/etc/machine-id", "hostname": "/etc/hostname"}
NAMES_CELL = f"print(json.dumps({{name: open(path).read() for name, path in {NAMES}.items()}}))"


async def test_no_two_clones_are_alike(site: Site) -> None:
    turns, clock = asyncio.Semaphore(site.driver.at_a_time), asyncio.Lock()

    async def one() -> Mapping[str, object]:
        async with turns:
            vm_id = await site.ready()
            try:
                return await fingerprint(site, vm_id, clock)
            finally:
                await site.vms.pop(vm_id).destroy()
                shutil.rmtree(site.directory(vm_id))

    async with asyncio.TaskGroup() as group:
        clones = [group.create_task(one()) for _ in range(site.driver.unique_clones)]
    assert_unlike([clone.result() for clone in clones])


async def fingerprint(site: Site, vm_id: str, clock: asyncio.Lock) -> Mapping[str, object]:
    """Everything that must be a VM's own, by name; its clock is right."""
    seen = json.loads(await say(site, vm_id, FIRST_CELL))
    async with clock:  # one asks at a time: the others would keep it from an answer that comes soon enough
        early, late = await clock_error(site, vm_id)
    assert -CLOCK_SECONDS < early <= late < CLOCK_SECONDS
    if site.driver.is_vm:  # a process has its host's names
        seen |= json.loads(await say(site, vm_id, NAMES_CELL))
    return dict(seen)


async def clock_error(site: Site, vm_id: str) -> tuple[float, float]:
    """Between what and what the guest's clock is ahead of ours: asked until the answer comes soon enough to tell."""
    async with site.guest(vm_id) as guest:
        for _ in range(CLOCK_TRIES):
            before = time.time()
            outcome = await guest.code("import time; print(time.time())")
            after, clock = time.time(), float(outcome.stdout)
            if after - before < CLOCK_SECONDS / 2:
                return clock - after, clock - before
    raise AssertionError("the guest is too slow for anybody to tell whether its clock is right")


def assert_unlike(fingerprints: Iterable[Mapping[str, object]]) -> None:
    """No value of one is that of another."""
    found = list(fingerprints)
    for name in found[0]:
        values = [one[name] for one in found]
        assert len(set(values)) == len(values), name
    assert all(one.keys() == found[0].keys() for one in found)
