"""Whether KVM works here: proven by booting a guest's kernel with it, as /dev/kvm may exist and run no stock kernel."""

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Said by the first program in the guest: kernel and user mode have run then.
MARK = "sandpool-proven"
CMDLINE = f"console=ttyS0 quiet panic=-1 rdinit=/bin/busybox -- echo {MARK}"
# What a guest sees of the host's CPU depends on these.
CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")


@dataclass(frozen=True)
class Prover:
    """A hypervisor that boots a guest for the proof.

    version raises OSError; boot_failure takes an image's directory and returns why its kernel did not boot, or nothing.
    """

    verdict_file: str
    version: Callable[[], Awaitable[str]]
    boot_failure: Callable[[Path], Awaitable[str]]


class Proof:
    """Made once per driver object; a boot's verdict is kept in cache for the rest of the host's boot.

    Guest images are looked for in cache too. Without one there is nothing to boot, and the question stays open.
    """

    def __init__(self, cache: Path | None, prover: Prover, device: Path = DEVICE) -> None:
        self._cache = cache
        self._prover = prover
        self._device = device
        self._lock = asyncio.Lock()
        self._failure: str | None = None

    async def failure(self) -> str | None:
        """Why KVM cannot be used, nothing if it can, None while that is open."""
        async with self._lock:
            if self._failure is None:
                self._failure = self._refused() or await self._verdict()
        return self._failure

    def _refused(self) -> str | None:
        if not self._device.exists():
            return f"{self._device} is missing"
        if not os.access(self._device, os.R_OK | os.W_OK):
            return f"no permission to use {self._device}"
        return None

    async def _verdict(self) -> str | None:
        if self._cache is None:
            return None
        key = [BOOT_ID.read_text().strip(), await self._prover.version(), str(self._device)]
        path = self._cache / self._prover.verdict_file
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text())
            if kept["key"] == key:
                return "" if kept["name"] == "kvm" else str(kept["detail"])
        image = newest_image(self._cache)
        if image is None:
            return None
        failure = await self._prover.boot_failure(image)
        detail = f"KVM does not boot a guest: {failure}" if failure else ""
        verdict = {"key": key, "name": "none" if failure else "kvm", "detail": detail or "boots a guest"}
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(verdict))
        part.rename(path)
        return detail


def newest_image(cache: Path) -> Path | None:
    """The directory of an image to boot, if one has been built."""
    images = [path.parent for path in (cache / "images").glob("[!.]*/vmlinux")]
    return max(images, key=lambda path: path.stat().st_mtime, default=None)


def host_cpu() -> str:
    """Of the kernel and the first processor, in short: a KVM template loads on no other."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items()}
    facts = [os.uname().release, *(known.get(name, "") for name in CPU_FIELDS)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
