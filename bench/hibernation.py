"""A hibernated VM comes back by mapping its memory; beside it, the way that reads all of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.rows import Row, p50
from node_agent.drivers.qemu import frozen, migration, process
from node_agent.drivers.qemu.command import Launch, Role, arguments
from node_agent.drivers.qemu.driver import QemuVmm
from node_agent.tunnel.dial import dial
from node_agent.vmm import GuestAddress, MachineSpec, Vmm

RUNS = 5


async def answers(address: GuestAddress) -> None:
    (await asyncio.to_thread(dial, address)).close()


async def by_mapping(vmm: Vmm, bundle: Path, machine: MachineSpec, directory: Path) -> float:
    """Seconds from a bundle to the first answer of its guest."""
    directory.mkdir()
    begun = time.perf_counter()
    vm = await vmm.clone(bundle, machine, directory)
    try:
        await answers(vm.address)
        return time.perf_counter() - begun
    finally:
        await vm.destroy()
        shutil.rmtree(directory)


async def qemu_by_copy(bundle: Path, machine: MachineSpec, directory: Path) -> float:
    """The same from a bundle whose state has the memory in it."""
    directory.mkdir()
    (directory / "memory").touch()
    os.truncate(directory / "memory", machine.memory_bytes)
    known = frozen.Frozen.from_json((bundle / frozen.FROZEN_FILE).read_text())
    begun = time.perf_counter()
    shutil.copyfile(bundle / "scratch", directory / "scratch")
    with process.listen(directory) as listener:
        root_bytes = known.image.root.stat().st_size
        launch = Launch(
            *(known.image, machine, known.acceleration, directory / "memory", root_bytes, Role.CLONE),
            listener.fileno(),
        )
        vm = process.spawn(arguments(launch), directory, listener, subprocess.DEVNULL)
    try:
        async with migration.control(directory) as qmp:
            await migration.resume(qmp, bundle / "state")
        await answers(vm.address)
        return time.perf_counter() - begun
    finally:
        await vm.destroy()
        shutil.rmtree(directory)


async def qemu_keep(vmm: QemuVmm, template: Path, machine: MachineSpec, work: Path) -> Path:
    """A clone's memory is private to it, so its state has all of it."""
    home, bundle = work / "h-copied", work / "b-copied"
    for directory in (home, bundle):
        directory.mkdir()
    vm = await vmm.clone(template, machine, home)
    await answers(vm.address)
    async with migration.control(home) as qmp:
        await migration.freeze(qmp, bundle / "state")
    await vm.destroy()
    for name in ("scratch", frozen.FROZEN_FILE):
        shutil.move(home / name, bundle / name)
    shutil.rmtree(home)
    return bundle


async def resume(
    name: str,
    vmm: Vmm,
    place: tuple[Path, MachineSpec, Path],
    keep: Callable[[Path, MachineSpec, Path], Awaitable[Path]],
    by_copy: Callable[[Path, MachineSpec, Path], Awaitable[float]],
) -> Row:
    """One row. place: a template, its machine, and where VMs may be (its path is short).

    keep makes a bundle with all of its memory in it, and by_copy takes the seconds from that to the first answer.
    """
    template, machine, work = place
    home, mapped = work / "h-mapped", work / "b-mapped"
    for directory in (home, mapped):
        directory.mkdir()
    vm = await vmm.clone(template, machine, home)
    await answers(vm.address)
    begun = time.perf_counter()
    await vmm.hibernate(vm, mapped)
    seconds = time.perf_counter() - begun
    allocated = (mapped / "memory").stat().st_blocks * 512 / 2**20
    copied = await keep(template, machine, work)
    own, baseline = [], []
    for number in range(RUNS):
        own.append(await by_mapping(vmm, mapped, machine, work / f"m{number}"))
        baseline.append(await by_copy(copied, machine, work / f"c{number}"))
    for directory in (home, mapped, copied):
        shutil.rmtree(directory)
    value, other = p50(own), p50(baseline)
    detail = f"hibernated in {seconds:.1f} s, {allocated:.0f} MiB kept"
    return Row(name, value, "ms", "by copy", other, "at most 1/3", value <= other / 3, RUNS, 0, detail)


async def qemu_resume(vmm: QemuVmm, template: Path, machine: MachineSpec, work: Path) -> Row:
    """resume."""

    async def keep(template: Path, machine: MachineSpec, work: Path) -> Path:
        return await qemu_keep(vmm, template, machine, work)

    return await resume("resume", vmm, (template, machine, work), keep, qemu_by_copy)
