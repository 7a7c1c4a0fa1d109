"""The Cloud Hypervisor of this host: where it is, which version, and whether it boots a guest here."""

import asyncio
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from node_agent.drivers.proof import CMDLINE, DEVICE, MARK, Proof, Prover

PROGRAM = "cloud-hypervisor"
VERDICT_FILE = "acceleration-cloud-hypervisor.json"
# With KVM a kernel needs one or two; where KVM itself is emulated, twenty.
BOOT_SECONDS = 30
# Before it: a virtio-block bug that a guest could use, and memory files that are copied where they should be mapped.
OLDEST = (51, 2)
# Holds the memory of every clone twice.
REFUSED_MAJOR = 52
VERSION_SECONDS = 10
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})")


class NotUsable(OSError):
    """There is no Cloud Hypervisor that we can use, as if its program was missing; the message says why."""


@dataclass(frozen=True)
class Version:
    """As "v53.0" or "cloud-hypervisor v53.0"."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Raises NotUsable."""
        found = _VERSION.search(text)
        if found is None:
            raise NotUsable(f"{text[:80]!r} is no version of Cloud Hypervisor")
        return cls(int(found[1]), int(found[2]))

    def check(self) -> None:
        """Raises NotUsable."""
        if (self.major, self.minor) < OLDEST:
            raise NotUsable(f"Cloud Hypervisor {self} is too old: v{OLDEST[0]}.{OLDEST[1]} or newer is needed")
        if self.major == REFUSED_MAJOR:
            raise NotUsable(f"Cloud Hypervisor {self} keeps the memory of every clone twice: v53 does not")

    def __str__(self) -> str:
        return f"v{self.major}.{self.minor}"


def find_program(setting: str, cache: Path) -> Path:
    """The one that is set, else of PATH, else of the cache. Raises NotUsable."""
    if setting:
        candidates = [setting]
    else:
        candidates = [found for found in (shutil.which(PROGRAM), str(cache / "bin" / PROGRAM)) if found]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return Path(candidate).absolute()
    raise NotUsable(f"{PROGRAM} is not installed: it is neither in PATH nor at {candidates[-1]}")


class Installation:
    """One program and the proof that KVM works with it."""

    def __init__(self, setting: str, cache: Path, device: Path = DEVICE) -> None:
        self._setting = setting
        self._cache = cache
        self._known: dict[tuple[Path, int, int], Version] = {}
        self._proof = Proof(cache, Prover(VERDICT_FILE, self._version_text, self._boot_failure), device)

    def program(self) -> Path:
        """Raises NotUsable."""
        return find_program(self._setting, self._cache)

    async def version(self) -> Version:
        """Asked once per program. Raises NotUsable."""
        program = self.program()
        status = program.stat()
        key = (program, status.st_ino, status.st_mtime_ns)
        if key not in self._known:
            version = Version.parse(await _ask_version(program))
            version.check()
            self._known = {key: version}
        return self._known[key]

    async def failure(self) -> str | None:
        """Why it cannot be used, nothing if it can, None while no guest image has been built to prove it with."""
        try:
            await self.version()
        except NotUsable as error:
            return str(error)
        return await self._proof.failure()

    async def _version_text(self) -> str:
        return f"{self.program()} {await self.version()}"

    async def _boot_failure(self, image: Path) -> str:
        return await boot_failure(self.program(), image)


async def _ask_version(program: Path) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *("timeout", "--signal=KILL", str(VERSION_SECONDS), str(program), "--version"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        answer, _ = await process.communicate()
    except OSError as error:
        raise NotUsable(f"{program}: {error.strerror}") from error
    if process.returncode != 0:
        raise NotUsable(f"{program} --version ended with {process.returncode}")
    return answer.decode(errors="replace").partition("\n")[0]


async def boot_failure(program: Path, image: Path, seconds: float = BOOT_SECONDS) -> str:
    """Boot the image's kernel up to its first program. Returns why that failed, or nothing at all."""
    # Not even our own end may leave it running. The guest ends by a reset, which boots it again: it is killed.
    command = ["timeout", "--signal=KILL", str(seconds), str(program), "--cpus=boot=1", "--memory=size=256M"]
    command += ["--serial=tty", "--console=off", f"--kernel={image / 'vmlinux'}", f"--initramfs={image / 'initramfs'}"]
    command += ["--cmdline", f"{CMDLINE.partition(' -- ')[0]} reboot=t tsc=reliable -- echo {MARK}"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    )
    assert process.stdout is not None and process.stderr is not None
    console = b""
    try:
        while MARK.encode() not in console:
            data = await process.stdout.read(4096)
            if not data:
                complaint = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
                return complaint[-1] if complaint else f"nothing ran within {seconds:g} s"
            console = (console + data)[-65536:]
        return ""
    finally:
        with suppress(ProcessLookupError):  # it has ended, and is known to have only later
            os.killpg(process.pid, 9)
        await process.communicate()
