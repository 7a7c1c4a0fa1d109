"""What VMs could run on here: QEMU, KVM and its proof, Cloud Hypervisor, and the vsock between host and guest."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandpool.cli.finding import CACHE, MISSING, OK, WARN, Finding
from sandpool.cli.releases import OLDEST, REFUSED_MAJOR, RELEASES, VERSION

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KVM = Path("/dev/kvm")
# Where the node agent keeps what its probes have found, by the program that booted the guest.
VERDICTS = {"QEMU": "acceleration.json", "Cloud Hypervisor": "acceleration-cloud-hypervisor.json"}
EMULATION = "software emulation (QEMU TCG), about 10 to 30 times slower"
QEMU_INSTEAD = "QEMU"
PROGRAM_SECONDS = 10.0


@dataclass(frozen=True)
class Verdict:
    """Of one program: whether KVM has booted a guest with it since this host was booted, and what was seen."""

    program: str
    proven: bool
    detail: str


def qemu() -> Finding:
    """The embedded default."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        return Finding("qemu", MISSING, "qemu-system-x86_64 is not installed", "apt-get install qemu-system-x86")
    return Finding("qemu", OK, _first_line(path) or path)


def kvm(device: Path = KVM, cache: Path = CACHE) -> Finding:
    """Proven, not only there: a boot of a guest decides."""
    if not device.exists():
        remedy = (
            "enable virtualisation in the firmware, or nested virtualisation of this VM; modprobe kvm_intel or kvm_amd"
        )
        return Finding("kvm", WARN, f"there is no {device}", remedy, EMULATION)
    if not os.access(device, os.R_OK | os.W_OK):
        remedy = "add your user to the group kvm and log in again"
        return Finding("kvm", WARN, f"no permission for {device}", remedy, EMULATION)
    verdicts = _verdicts(cache)
    if not verdicts:
        return Finding("kvm", OK, f"{device} is there; proven by a boot before it is used")
    detail = "; ".join(f"{verdict.program}: {verdict.detail}" for verdict in verdicts)
    if any(verdict.proven for verdict in verdicts):
        return Finding("kvm", OK, f"{device} is proven by a boot ({detail})")
    remedy = f"a kernel and firmware whose KVM runs stock guests; then remove {cache}/acceleration*.json to try again"
    return Finding("kvm", WARN, detail, remedy, EMULATION)


def _verdicts(cache: Path) -> list[Verdict]:
    """What the node agent found on this host since it was booted."""
    found = []
    for program, name in VERDICTS.items():
        with suppress(OSError, ValueError, LookupError, TypeError):
            kept = json.loads((cache / name).read_text())
            if kept["key"][0] == BOOT_ID.read_text().strip():
                found.append(Verdict(program, kept["name"] == "kvm", str(kept["detail"])))
    return found


def find_cloud_hypervisor(cache: Path = CACHE) -> Path | None:
    """Where the node agent finds it: in PATH, else in the cache."""
    path = shutil.which("cloud-hypervisor") or str(cache / "bin" / "cloud-hypervisor")
    return Path(path) if os.access(path, os.X_OK) else None


def cloud_hypervisor(cache: Path = CACHE) -> Finding:
    """Whether it is there and of a version that maps the memory of clones."""
    name, path = "cloud-hypervisor", find_cloud_hypervisor(cache)
    if path is None:
        has_release = platform.machine() in RELEASES
        remedy = f"sandpool doctor --fix (downloads v{VERSION})" if has_release else "build it for this architecture"
        return Finding(name, WARN, "not installed", remedy, QEMU_INSTEAD)
    said = _first_line(str(path))
    version = re.search(r"v(\d{1,4})\.(\d{1,4})", said)
    if version is None:
        return Finding(name, WARN, f"{path} does not tell its version", f"v{VERSION} is known to work", QEMU_INSTEAD)
    number = (int(version[1]), int(version[2]))
    if number < OLDEST or number[0] == REFUSED_MAJOR:
        why = "is too old" if number < OLDEST else "holds the memory of every clone twice"
        remedy = f"v{VERSION}: remove {path}, then sandpool doctor --fix"
        return Finding(name, WARN, f"{version[0]} at {path} {why}", remedy, QEMU_INSTEAD)
    pinned = "" if f"{number[0]}.{number[1]}" == VERSION else f" (v{VERSION} is what is tested)"
    return Finding(name, OK, f"{version[0]} at {path}{pinned}")


def vsock() -> Finding:
    """Both drivers reach guests through UNIX sockets: the kernel's own vsock is never needed."""
    return Finding("vsock", OK, "not needed of this kernel: Cloud Hypervisor has its own, QEMU uses virtio-serial")


def userfaultfd() -> Finding:
    """Restoring on demand would need it; we map."""
    return Finding("userfaultfd", OK, "not needed: clones map the memory file of their template")


def _first_line(path: str) -> str:
    """Of what a program says to --version; nothing if it does not run."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=PROGRAM_SECONDS, check=False
        )
        return done.stdout.partition("\n")[0].strip()
    return ""
