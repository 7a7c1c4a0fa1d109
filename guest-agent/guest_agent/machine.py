"""The kernel of a VM that the agent owns: what must be fresh in every clone."""

import ctypes
import fcntl
import gc
import os
import socket
import struct
import time
from pathlib import Path

from google.protobuf import timestamp_pb2

from guest_agent.cgroup import Cgroups
from sandpool.guest.v1 import guest_pb2 as pb

# linux/random.h
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
MS_BIND = 4096
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FRESH_BOOT_ID = Path("/run/sandpool/boot_id")
HOSTNAME, MACHINE_ID = Path("/etc/hostname"), Path("/etc/machine-id")


class MachineIdentity:
    """Of a real VM; needs root."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._placed = False

    def assume(self, request: pb.PrepareRequest) -> None:
        """Entropy first: the boot id comes from it."""
        entropy = request.entropy
        with Path("/dev/random").open("wb", buffering=0) as device:
            fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
            fcntl.ioctl(device, RNDRESEEDCRNG)
        self.set_clock(request.now)
        socket.sethostname(request.hostname)
        HOSTNAME.write_text(request.hostname + "\n")
        MACHINE_ID.write_text(request.machine_id + "\n")
        if not self._placed:  # not from a template
            self._place_boot_id()
        FRESH_BOOT_ID.write_text(_uuid(bytearray(os.urandom(16))) + "\n")
        if request.max_processes:
            self._cgroups.limit_processes(request.max_processes)

    def set_clock(self, now: timestamp_pb2.Timestamp) -> None:
        """Of the wall; timeouts do not depend on it."""
        time.clock_settime_ns(time.CLOCK_REALTIME, now.ToNanoseconds())

    def _place_boot_id(self) -> None:
        """The kernel's own is fixed for a boot, and a clone has not booted: a file is mounted over it."""
        FRESH_BOOT_ID.parent.mkdir(mode=0o755, exist_ok=True)
        FRESH_BOOT_ID.touch(mode=0o644)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(bytes(FRESH_BOOT_ID), bytes(BOOT_ID), None, MS_BIND, None) != 0:
            raise OSError(ctypes.get_errno(), "cannot mount a fresh boot_id")
        self._placed = True

    def settle(self) -> None:
        """Do in the template what every clone would have to do, and leave little that a clone would copy.

        The files of assume() get their places (a first write copies them up, a mount costs 30 ms emulated), dirty pages
        are written, and the collector will not visit what is there now.
        """
        for path in (HOSTNAME, MACHINE_ID):
            path.write_text("\n")
        self._place_boot_id()
        gc.collect()
        gc.freeze()
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1\n")  # names stay: each clone would look them up again


def _uuid(raw: bytearray) -> str:
    """Version 4, as the kernel writes it."""
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
