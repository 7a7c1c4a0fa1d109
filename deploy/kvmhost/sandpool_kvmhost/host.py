"""One emulated host per user: boots it, finds it again, ends it."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sandpool_image.build import locked, make_scratch
from sandpool_kvmhost.command import HostSpec, arguments
from sandpool_kvmhost.image import HostImage
from sandpool_kvmhost.process import Identity, StartFailed, is_alive, kill, start
from sandpool_kvmhost.ssh import Way

# Sparse; it is gone with the host.
DISK_BYTES = 40 << 30
BOOT_SECONDS = 180.0
POLL_SECONDS = 0.1
# What start.sh says on the console.
SAYS, READY = "kvmhost: ", "kvmhost: ready"
TAIL_BYTES = 2000

Say = Callable[[str], None]


class HostFailed(RuntimeError):
    """It does not boot, or is not there; the message is for humans."""


@dataclass(frozen=True)
class Running:
    """A host that has booted."""

    identity: Identity
    image: HostImage
    port: int
    directory: Path

    @property
    def way(self) -> Way:
        return Way(self.image, self.port, self.directory)

    @property
    def monitor(self) -> Path:
        return self.directory / "qmp"


class Place:
    """Where the host of this user lives: logs, sockets, its disk, and who it is."""

    def __init__(self, cache: Path) -> None:
        self._base = cache / "kvmhost"
        self.directory = self._base / "run"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For who starts, ends or fills the host."""
        self._base.mkdir(parents=True, exist_ok=True)
        self._base.chmod(0o700)
        with locked(self._base / "lock"):
            yield

    def find(self) -> Running | None:
        """The host that runs, if one does."""
        try:
            kept = json.loads((self.directory / "host.json").read_text())
            identity = Identity(**kept["identity"])
            running = Running(identity, HostImage(Path(kept["image"])), int(kept["port"]), self.directory)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return running if is_alive(identity) else None

    def boot(self, spec: HostSpec, image: HostImage, say: Say) -> Running:
        """A fresh one. The caller holds the lock, and none runs. Raises HostFailed."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        make_scratch(self.directory / "disk", DISK_BYTES)
        port = free_port()
        try:
            identity = start(arguments(spec, image.directory, port), self.directory)
        except StartFailed as error:
            raise HostFailed(f"QEMU does not start: {error}") from error
        running = Running(identity, image, port, self.directory)
        try:
            kept = {"identity": asdict(identity), "image": str(image.directory), "port": port}
            (self.directory / "host.json").write_text(json.dumps(kept))
            self._watch(running, say)
        except BaseException:
            kill(identity)
            raise
        return running

    def _watch(self, running: Running, say: Say) -> None:
        """Tell what it says, until it can be entered."""
        deadline, told = time.monotonic() + BOOT_SECONDS, 0
        console = self.directory / "console"
        while True:
            lines = _lines(console)
            for line in lines[told:]:
                say(line.removeprefix(SAYS))
            told = len(lines)
            if READY in lines and running.way.open():
                return
            if not is_alive(running.identity) or time.monotonic() > deadline:
                raise HostFailed(f"the host did not boot; the end of its logs:\n{self._logs()}")
            time.sleep(POLL_SECONDS)

    def _logs(self) -> str:
        tails = []
        for name in ("console", "ssh.log"):
            path = self.directory / name
            if path.exists():
                tails.append(path.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip())
        return "\n".join(filter(None, tails))

    def end(self) -> bool:
        """Whether there was one. The caller holds the lock."""
        running = self.find()
        if running is not None:
            running.way.close()
            kill(running.identity)
        shutil.rmtree(self.directory, ignore_errors=True)
        return running is not None


def _lines(console: Path) -> list[str]:
    """Whole lines of ours."""
    if not console.exists():
        return []
    text = console.read_bytes().decode(errors="replace")
    whole = (line for line in text.splitlines(keepends=True) if line.endswith("\n"))
    return [SAYS + line.rpartition(SAYS)[2].strip() for line in whole if SAYS in line]


def free_port() -> int:
    """That nobody on loopback had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
