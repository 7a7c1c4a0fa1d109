"""The way into the host: one SSH connection over loopback that all commands share."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandpool_kvmhost.image import HostImage

# Of the shared connection, after its last user.
PERSIST_SECONDS = 300
CONNECT_SECONDS = 30


@dataclass(frozen=True)
class Way:
    """Into a host that listens on a port of this machine. directory has the socket of the shared connection."""

    image: HostImage
    port: int
    directory: Path

    def command(self, words: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """That runs words in the host, exactly as they are."""
        return [*self._ssh(), *options, "kvmhost", shlex.join(words)]

    def _ssh(self) -> list[str]:
        settings = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": "root",
            "HostKeyAlias": "kvmhost",
            "UserKnownHostsFile": _word(self.image.known_hosts),
            "IdentityFile": _word(self.image.key),
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "ControlPath": _word(self.directory / "way"),
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ExitOnForwardFailure": "yes",
        }
        return ["ssh", "-F", "none", *(word for item in settings.items() for word in ("-o", "=".join(item)))]

    def open(self) -> bool:
        """Make the shared connection, unless it is there."""
        if self._control("check"):
            return True
        share = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={PERSIST_SECONDS}", "-fN"]
        with (self.directory / "ssh.log").open("w") as log:  # not our own output: it would stay open for as long
            done = subprocess.run(
                [*self._ssh(), *share, "kvmhost"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        return done.returncode == 0

    def close(self) -> None:
        """End the shared connection, if it is there."""
        self._control("exit")

    def _control(self, order: str) -> bool:
        command = [*self._ssh(), "-O", order, "kvmhost"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _word(path: Path) -> str:
    """A path as SSH's settings take it: in quotes, its own signs doubled."""
    return '"' + str(path).replace("%", "%%") + '"'
