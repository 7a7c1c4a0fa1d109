"""The host's QEMU, found again by its process id and the time at which it began."""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Bytes of a name may hold spaces and brackets: fields are counted from behind it.
_START_FIELD = 19
KILL_SECONDS = 10.0
PID_FILE = "pid"
MAX_COMPLAINT = 2000


class StartFailed(RuntimeError):
    """The message is what the program said."""


@dataclass(frozen=True)
class Identity:
    """Of a process: no other one ever has both."""

    pid: int
    started: int


def start(command: Sequence[str], directory: Path) -> Identity:
    """A program that detaches itself, working in directory, and leaves its id in the file pid. Raises StartFailed."""
    try:
        done = subprocess.run(
            command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise StartFailed(str(error)) from error
    if done.returncode != 0:
        raise StartFailed(done.stderr.strip()[-MAX_COMPLAINT:])
    identity = identify(int((directory / PID_FILE).read_text()))
    if identity is None:
        raise StartFailed("it ended at once")
    return identity


def identify(pid: int) -> Identity | None:
    """Of the process that has this id now; None if there is none, or only its remains."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return Identity(pid, int(fields[_START_FIELD]))
    return None


def is_alive(identity: Identity) -> bool:
    """Whether it is still that process."""
    return identify(identity.pid) == identity


def kill(identity: Identity) -> None:
    """At once; returns when it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(identity):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            ended.poll(KILL_SECONDS * 1000)
    finally:
        os.close(descriptor)
