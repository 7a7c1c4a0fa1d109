"""Whether KVM works here: proven by booting a guest's kernel with it, as /dev/kvm may exist and run no stock kernel."""

import asyncio
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from node_agent.drivers.qemu.command import PROGRAM, cpu
from node_agent.vmm import Acceleration

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
VERDICT_FILE = "acceleration.json"
# With KVM a kernel needs one or two.
BOOT_SECONDS = 10
# Said by the first program in the guest: kernel and user mode have run then.
MARK = "sandpool-proven"
CMDLINE = f"console=ttyS0 quiet panic=-1 rdinit=/bin/busybox -- echo {MARK}"
# What `-cpu host` shows to a guest depends on these.
CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")


class Probe:
    """The choice of one driver object, made once; a boot's verdict is kept in cache for the rest of the host's boot.

    Guest images are looked for in cache too. Without one there is nothing to boot, and the choice stays open.
    """

    def __init__(self, cache: Path | None, device: Path = DEVICE) -> None:
        self._cache = cache
        self._device = device
        self._lock = asyncio.Lock()
        self._chosen: Acceleration | None = None

    async def acceleration(self) -> Acceleration:
        """KVM if it is proven, else emulation and why."""
        async with self._lock:
            if self._chosen is None:
                self._chosen = self._refused() or await self._verdict()
        return self._chosen or _emulation("KVM is not proven yet: no guest image has been built")

    def _refused(self) -> Acceleration | None:
        if not self._device.exists():
            return _emulation(f"{self._device} is missing")
        if not os.access(self._device, os.R_OK | os.W_OK):
            return _emulation(f"no permission to use {self._device}")
        return None

    async def _verdict(self) -> Acceleration | None:
        if self._cache is None:
            return None
        key = [BOOT_ID.read_text().strip(), await version(), str(self._device)]
        path = self._cache / VERDICT_FILE
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text())
            if kept["key"] == key:
                return Acceleration(str(kept["name"]), str(kept["detail"]))
        image = _newest_image(self._cache)
        if image is None:
            return None
        failure = await boot_failure("kvm", image)
        chosen = (
            _emulation(f"KVM does not boot a guest: {failure}") if failure else Acceleration("kvm", "boots a guest")
        )
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({"key": key, "name": chosen.name, "detail": chosen.detail}))
        part.rename(path)
        return chosen


def _emulation(detail: str) -> Acceleration:
    return Acceleration("emulation", detail)


def _newest_image(cache: Path) -> Path | None:
    images = [path.parent for path in (cache / "images").glob("[!.]*/vmlinux")]
    return max(images, key=lambda path: path.stat().st_mtime, default=None)


async def boot_failure(acceleration: str, image: Path, seconds: float = BOOT_SECONDS) -> str:
    """Boot the image's kernel up to its first program. Returns why that failed, or nothing at all."""
    # Not even our own end may leave it running.
    command = ["timeout", "--signal=KILL", str(seconds), PROGRAM, "-M", "q35", "-nodefaults", "-nographic"]
    command += ["-no-reboot", *cpu(acceleration), "-smp", "2", "-m", "256M", "-serial", "stdio"]
    command += ["-kernel", str(image / "vmlinux"), "-initrd", str(image / "initramfs"), "-append", CMDLINE]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        console, complaint = await process.communicate()
    except BaseException:
        process.terminate()
        await process.wait()
        raise
    if MARK.encode() in console:
        return ""
    lines = complaint.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"nothing ran within {seconds} s"


async def version() -> str:
    """What the QEMU of this host calls itself. Raises OSError."""
    process = await asyncio.create_subprocess_exec(PROGRAM, "--version", stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0].decode(errors="replace").partition("\n")[0]


def host_cpu() -> str:
    """Of the kernel and the first processor, in short: a KVM template loads on no other."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items()}
    facts = [os.uname().release, *(known.get(name, "") for name in CPU_FIELDS)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
