"""States that leave one QEMU and enter another: how VMs are frozen, resumed and hibernated."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from node_agent.drivers.qemu import process
from node_agent.drivers.qemu.qmp import Qmp

# A paused VM is not kept waiting: as fast as it goes.
BYTES_PER_SECOND = 1 << 40


@asynccontextmanager
async def control(directory: Path) -> AsyncIterator[Qmp]:
    """The control connection of the QEMU in directory. Raises OSError, QmpError."""
    qmp = await process.connect(directory)
    try:
        yield qmp
    finally:
        await qmp.close()


async def freeze(qmp: Qmp, state: Path) -> None:
    """All but the memory of a QEMU that shares it with its file. Raises QmpError, OSError."""
    await qmp.execute("stop")
    await _prepare(qmp, with_memory=False)
    with state.open("wb") as file:
        await qmp.give(file.fileno(), "state")
    await qmp.execute("migrate", uri="fd:state")
    await qmp.migration_ended()


async def resume(qmp: Qmp, state: Path) -> None:
    """Load a state that was left without memory, and run. Raises QmpError, OSError."""
    await _prepare(qmp, with_memory=False)
    with state.open("rb") as file:
        await qmp.give(file.fileno(), "state")
    await qmp.execute("migrate-incoming", uri="fd:state")
    await qmp.migration_ended()  # a cont before this point leaves it paused
    await qmp.execute("cont")


async def move(source: Qmp, target: Qmp, meeting: Path) -> None:
    """Stop a VM and move it, memory included, to a QEMU that waits for one. meeting is a socket's path to be.

    Memory of the target that was a hole in its file and gets nothing but zeros stays one. Raises QmpError.
    """
    await source.execute("stop")
    for qmp in (source, target):
        await _prepare(qmp, with_memory=True)
    await source.execute("migrate-set-parameters", **{"max-bandwidth": BYTES_PER_SECOND})
    await target.execute("migrate-incoming", uri=f"unix:{meeting}")
    await source.execute("migrate", uri=f"unix:{meeting}")
    for qmp in (source, target):
        await qmp.migration_ended()


async def _prepare(qmp: Qmp, *, with_memory: bool) -> None:
    """Without memory: what is shared with a file stays there. "events" makes QEMU say when a migration has ended."""
    states = {"events": True, "x-ignore-shared": not with_memory}
    capabilities = [{"capability": name, "state": state} for name, state in states.items()]
    await qmp.execute("migrate-set-capabilities", capabilities=capabilities)
