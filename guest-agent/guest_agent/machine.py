"""The kernel of a VM that the agent owns: what must be fresh in every clone."""

import ctypes
import fcntl
import gc
import os
import socket
import struct
import time
from pathlib import Path

from guest_agent.cgroup import Cgroups
from sandpool.guest.v1 import guest_pb2 as pb

# linux/random.h
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
MS_BIND = 4096
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RUN = Path("/run/sandpool")


class MachineIdentity:
    """Of a real VM; needs root."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups

    def assume(self, request: pb.PrepareRequest) -> None:
        """Entropy first: the boot id comes from it."""
        entropy = request.entropy
        with Path("/dev/random").open("wb", buffering=0) as device:
            fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
            fcntl.ioctl(device, RNDRESEEDCRNG)
        time.clock_settime(time.CLOCK_REALTIME, request.now.ToNanoseconds() / 1e9)
        socket.sethostname(request.hostname)
        Path("/etc/hostname").write_text(request.hostname + "\n")
        Path("/etc/machine-id").write_text(request.machine_id + "\n")
        self._renew_boot_id()
        if request.max_processes:
            self._cgroups.limit_processes(request.max_processes)

    def _renew_boot_id(self) -> None:
        """The kernel's own is fixed for a boot, and a clone has not booted: another one is mounted over it."""
        raw = bytearray(os.urandom(16))
        raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
        digits = raw.hex()
        RUN.mkdir(mode=0o755, exist_ok=True)
        fresh = RUN / "boot_id"
        fresh.write_text("-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])) + "\n")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(bytes(fresh), bytes(BOOT_ID), None, MS_BIND, None) != 0:
            raise OSError(ctypes.get_errno(), "cannot mount a fresh boot_id")

    def settle(self) -> None:
        """Dirty pages in a template are copied by every clone that writes them back, and what the collector visits."""
        gc.collect()
        gc.freeze()
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
