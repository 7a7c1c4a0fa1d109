"""This boot of the host: its name, and the clock that nothing but a reboot sets."""

import time
from pathlib import Path


def boot_id() -> str:
    """Changes with every boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def boot_seconds() -> float:
    """Since the boot, through suspends and changes of the wall clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
