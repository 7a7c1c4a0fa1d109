"""Named places at which a test can have a process killed: what kill -9 leaves behind there, its successor puts right.

Off unless SANDPOOL_FAILPOINT names a directory. A file in it with the name of a place arms that place once: whichever
process gets there first takes the file away and is gone, so that the one that is started in its place is not.
"""

import os
import signal
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

VARIABLE = "SANDPOOL_FAILPOINT"


class Place(StrEnum):
    """All there are; each says what has just been done."""

    TEMPLATE_BOOTED = "node-agent.template-booted"
    VM_JOURNALED = "node-agent.vm-journaled"
    VM_SPAWNED = "node-agent.vm-spawned"
    VM_CLONED = "node-agent.vm-cloned"
    VM_SEALED = "node-agent.vm-sealed"
    SEAL_JOURNALED = "node-agent.seal-journaled"
    VM_KILLED = "node-agent.vm-killed"
    VM_ADDED = "pool-manager.vm-added"
    VM_CHOSEN = "pool-manager.vm-chosen"
    SESSION_COMMITTED = "pool-manager.session-committed"
    VM_DESTROYED = "pool-manager.vm-destroyed"
    ROUTE_ACQUIRED = "scheduler.route-acquired"
    EVENT_SENT = "scheduler.event-sent"
    BYTES_RELAYED = "tunnel.bytes-relayed"


class UnknownPlace(Exception):
    """The directory is none, or a file in it has the name of no place."""


def directory_of(environment: Mapping[str, str]) -> Path | None:
    """Where places are armed; None if nowhere. Raises UnknownPlace."""
    value = environment.get(VARIABLE)
    if not value:
        return None
    directory, names = Path(value), set(Place)
    if not directory.is_dir():
        raise UnknownPlace(f"{VARIABLE}: {value} is no directory")
    for path in directory.iterdir():
        if path.name not in names:
            raise UnknownPlace(f"{VARIABLE}: there is no place {path.name!r}; there are {', '.join(sorted(names))}")
    return directory


_directory = directory_of(os.environ)


def reach(place: Place) -> None:
    """Do nothing, unless this place is armed."""
    if _directory is not None:
        _die_if_armed(_directory / place)


def _die_if_armed(token: Path) -> None:
    try:
        token.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
