"""`sandpool doctor`: what this host can do, why, and what to do about what it cannot. Changes nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

OK, WARN, MISSING = "ok", "warn", "missing"
MIN_MEMORY_BYTES, MIN_DISK_BYTES = 2 << 30, 8 << 30
CACHE = Path.home() / ".cache" / "sandpool"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Command: the package that has it.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz": "xz-utils",
    "newuidmap": "uidmap",
    "busybox": "busybox-static",
    "depmod": "kmod",
}


@dataclass(frozen=True)
class Finding:
    """One line: remedy is empty when all is well; instead says what is used as long as it is not."""

    name: str
    status: str
    detail: str
    remedy: str = ""
    instead: str = ""


def examine() -> list[Finding]:
    """Every check; one that fails by itself is a finding, too."""
    checks: Iterable[Callable[[], Finding]] = (
        _python,
        _qemu,
        _kvm,
        _cloud_hypervisor,
        _tools,
        _namespaces,
        _memory,
        _disk,
        _cgroups,
    )
    return [check() for check in checks]


def as_json(findings: list[Finding]) -> list[dict[str, str]]:
    """For --json."""
    return [asdict(finding) for finding in findings]


def _python() -> Finding:
    return Finding("python", OK, f"{platform.python_version()} at {sys.executable}")


def _qemu() -> Finding:
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        return Finding("qemu", MISSING, "qemu-system-x86_64 is not installed", "apt-get install qemu-system-x86")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return Finding("qemu", OK, done.stdout.splitlines()[0] if done.stdout else path)


def _kvm() -> Finding:
    device, instead = Path("/dev/kvm"), "software emulation (QEMU TCG), about 10 to 30 times slower"
    if not device.exists():
        remedy = (
            "enable virtualisation in the firmware, or nested virtualisation of this VM; modprobe kvm_intel or kvm_amd"
        )
        return Finding("kvm", WARN, "there is no /dev/kvm", remedy, instead)
    if not os.access(device, os.R_OK | os.W_OK):
        remedy = "add your user to the group kvm and log in again"
        return Finding("kvm", WARN, "no permission for /dev/kvm", remedy, instead)
    name, detail = _verdict()
    if name and name != "kvm":
        return Finding("kvm", WARN, detail, "see why a guest does not boot here: sandpool nodes", instead)
    proven = "proven by a boot" if name else "proven by a boot before it is used"
    return Finding("kvm", OK, f"/dev/kvm is there; {proven}")


def _verdict() -> tuple[str, str]:
    """What the node agent found on this host since it was booted: name and detail, or twice nothing."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads((CACHE / "acceleration.json").read_text())
        if kept["key"][0] == BOOT_ID.read_text().strip():
            return str(kept["name"]), str(kept["detail"])
    return "", ""


def _cloud_hypervisor() -> Finding:
    path = shutil.which("cloud-hypervisor")
    return Finding("cloud-hypervisor", OK, f"{path or 'not installed'}; this version uses QEMU")


def _tools() -> Finding:
    missing = sorted({package for tool, package in TOOLS.items() if not _find(tool)})
    if missing:
        needed = f"apt-get install {' '.join(missing)}"
        return Finding(
            "image tools", MISSING, f"missing: {', '.join(missing)}", needed, "an image that is built already"
        )
    return Finding("image tools", OK, "all that building the guest image needs")


def _find(tool: str) -> bool:
    return shutil.which(tool) is not None or any(Path(folder, tool).exists() for folder in ("/sbin", "/usr/sbin"))


def _namespaces() -> Finding:
    if os.geteuid() == 0:
        return Finding("user namespaces", OK, "not needed: you are root")
    done = subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True, check=False)
    if done.returncode != 0:
        remedy = "sysctl kernel.unprivileged_userns_clone=1, or build the image as root once"
        return Finding(
            "user namespaces", MISSING, "not permitted for your user", remedy, "an image that is built already"
        )
    return Finding("user namespaces", OK, "the guest image can be built without root")


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    detail = f"{total / 2**30:.1f} GiB, {os.cpu_count()} CPUs"
    if total < MIN_MEMORY_BYTES:
        return Finding(
            "memory", WARN, detail, "2 GiB or more for the default pool; or pools with a smaller ready target"
        )
    return Finding("memory", OK, detail)


def _disk() -> Finding:
    place = next(path for path in (CACHE, *CACHE.parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / 2**30:.1f} GiB free at {place}"
    if free < MIN_DISK_BYTES:
        return Finding("disk", WARN, detail, "8 GiB for the image, templates and scratch disks")
    return Finding("disk", OK, detail)


def _cgroups() -> Finding:
    root, instead = Path("/sys/fs/cgroup"), "limits inside each VM, and its own size"
    if not (root / "cgroup.controllers").exists():
        detail, remedy = "this host has cgroup v1", "boot with systemd.unified_cgroup_hierarchy=1"
        return Finding("cgroups", WARN, detail, remedy, instead)
    own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    controllers = (root / own / "cgroup.controllers").read_text().split() if (root / own).exists() else []
    missing = {"cpu", "memory", "pids"} - set(controllers)
    if missing or not os.access(root / own, os.W_OK):
        remedy = "run it under systemd with Delegate=yes (systemd-run --user --scope -p Delegate=yes sandpool up)"
        return Finding("cgroups", WARN, "version 2, not delegated to you", remedy, instead)
    return Finding("cgroups", OK, "version 2, delegated")
