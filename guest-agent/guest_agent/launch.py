"""Starting processes for user code: the one place of the agent that does."""

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guest_agent.cgroup import Cgroups, Group
from guest_agent.process import Program

# linux/prctl.h
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
# A static shell that user code cannot read, and so cannot trace: see start.sh. It waits until it is in its group.
GATE = "/run/sandpool/gate"
# Of our own environment; what user code runs has its own packages.
OURS = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "OLDPWD", "SHLVL", "TERM"}
GATE_SCRIPT = 'read -r -u "$0" _ || exit 126; eval "exec $0<&-"; exec "$@"'


class Launcher:
    """Starts programs in sessions of their own, in the data directory.

    In a VM (user and cgroups are given) as that user, without any privilege or way to gain one, in a fresh group.
    """

    def __init__(
        self, data: Path, environment: Mapping[str, str], user: int | None = None, cgroups: Cgroups | None = None
    ) -> None:
        self.data = data
        self._environment = {name: value for name, value in environment.items() if name not in OURS}
        self._user = user
        self._cgroups = cgroups
        self._programs: set[Program] = set()

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        leave_memory: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        streams: Mapping[str, Any],
    ) -> Program:
        """Start a program; streams are keywords of Popen, name and leave_memory its group's.

        Raises OSError, ValueError.
        """
        options: dict[str, Any] = {
            "env": {**self._environment, **(env or {})},
            "cwd": self.data / (cwd or ""),
            "start_new_session": True,
            **streams,
        }
        self._programs = {program for program in self._programs if program.running}
        if self._cgroups is None:
            program = Program(subprocess.Popen(arguments, **options), None, None)
        else:
            group = self._cgroups.make(name, leave_memory=leave_memory)
            program = Program(self._start_confined(group, arguments, options), self._cgroups, group)
        self._programs.add(program)
        return program

    def _start_confined(
        self, group: Group, arguments: Sequence[str], options: dict[str, Any]
    ) -> "subprocess.Popen[bytes]":
        identity: dict[str, Any] = {"user": self._user, "group": self._user, "extra_groups": ()}
        gate_in, gate_out = os.pipe()
        options["pass_fds"] = (*options.get("pass_fds", ()), gate_in)
        try:
            program = _find(arguments[0], options["env"])
            gated = ["sh", "-c", GATE_SCRIPT, str(gate_in), program, *arguments[1:]]
            popen = subprocess.Popen(gated, executable=GATE, **identity, **options)
            _admit(popen, group, gate_out)
        except BaseException:
            group.close()
            group.try_remove()
            raise
        finally:
            os.close(gate_in)
            os.close(gate_out)
        return popen

    def kill_all(self) -> None:
        """The agent ends, and with it everything that it has started."""
        for program in self._programs:
            if program.running:
                program.kill()


def _find(name: str, env: Mapping[str, str]) -> str:
    """The program's path: by its bare name the gate would take one of its own tools. Raises FileNotFoundError."""
    if "/" in name:
        return name
    path = shutil.which(name, path=env.get("PATH"))
    if path is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return path


def _admit(popen: "subprocess.Popen[bytes]", group: Group, gate: int) -> None:
    try:
        group.add(popen.pid)
        os.write(gate, b"\n")
    except OSError:
        popen.kill()
        popen.wait()
        raise


def renounce() -> None:
    """From here on nothing that this process starts can gain a privilege. It keeps its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot set no_new_privs")
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
