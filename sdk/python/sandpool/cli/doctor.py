"""`sandpool doctor`: what this host can do, why, and what to do about what it cannot. Changes nothing."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from sandpool.cli import vmm_checks
from sandpool.cli.finding import CACHE, MISSING, OK, WARN, Finding

__all__ = ["MISSING", "OK", "WARN", "Finding", "as_json", "examine"]
MIN_MEMORY_BYTES, MIN_DISK_BYTES = 2 << 30, 8 << 30
# Tunnels and services hold a few descriptors per connection, a VMM about a hundred.
MIN_FILES = 4096
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


def examine() -> list[Finding]:
    """Every check; one that fails by itself is a finding, too."""
    checks: Iterable[Callable[[], Finding]] = (
        _python,
        vmm_checks.qemu,
        vmm_checks.kvm,
        vmm_checks.cloud_hypervisor,
        vmm_checks.vsock,
        vmm_checks.userfaultfd,
        _tools,
        _namespaces,
        _memory,
        _disk,
        _files,
        _cgroups,
    )
    return [check() for check in checks]


def as_json(findings: list[Finding]) -> list[dict[str, str]]:
    """For --json."""
    return [asdict(finding) for finding in findings]


def _python() -> Finding:
    return Finding("python", OK, f"{platform.python_version()} at {sys.executable}")


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


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MIN_FILES:
        remedy = f"ulimit -n {MIN_FILES}" if hard >= MIN_FILES else "LimitNOFILE=65536, or /etc/security/limits.conf"
        return Finding("open files", WARN, f"at most {soft} per process", remedy, "fewer VMs and connections at once")
    return Finding("open files", OK, f"at most {soft} per process")


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
