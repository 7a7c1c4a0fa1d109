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
from guest_agent.immortal import immortalize
from guest_agent.prefault import map_files
from sandpool.guest.v1 import guest_pb2 as pb

# linux/random.h
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
MS_BIND = 4096
# Where the files are that differ in every clone: in memory, and mounted over those that everybody knows.
OWN = Path("/run/sandpool")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
HOSTNAME, MACHINE_ID = Path("/etc/hostname"), Path("/etc/machine-id")


class OwnFile:
    """A file that is written anew in every clone. It is open already, and in no file system that has a disk."""

    def __init__(self, path: Path) -> None:
        """Mounts it over path. Raises OSError."""
        place = OWN / path.name
        OWN.mkdir(mode=0o755, exist_ok=True)
        self._descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._descriptor).st_size
        if not path.exists():
            path.touch()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(bytes(place), bytes(path), None, MS_BIND, None) != 0:
            raise OSError(ctypes.get_errno(), f"cannot mount {place} over {path}")

    def write(self, line: str) -> None:
        """Nothing else is in it afterwards. Raises OSError."""
        data = f"{line}\n".encode()
        os.pwrite(self._descriptor, data, 0)
        if len(data) != self._size:
            self._size = len(data)
            os.ftruncate(self._descriptor, self._size)


class MachineIdentity:
    """Of a real VM; needs root.

    Under emulation a clone translates every piece of code when it first runs it, the kernel's too. So it opens nothing,
    touches no disk and does only what makes it another machine: the rest is done in the template.
    """

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._random = os.open("/dev/random", os.O_WRONLY | os.O_CLOEXEC)
        self._files: dict[Path, OwnFile] = {}

    def assume(self, request: pb.PrepareRequest) -> None:
        """Entropy first: the boot id comes from it."""
        entropy = request.entropy
        fcntl.ioctl(self._random, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(self._random, RNDRESEEDCRNG)
        self.set_clock(request.now)
        socket.sethostname(request.hostname)
        self._place_files()
        self._files[HOSTNAME].write(request.hostname)
        self._files[MACHINE_ID].write(request.machine_id)
        self._files[BOOT_ID].write(_uuid(bytearray(os.urandom(16))))
        if request.max_processes:
            self._cgroups.limit_processes(request.max_processes)

    def set_clock(self, now: timestamp_pb2.Timestamp) -> None:
        """Of the wall; timeouts do not depend on it."""
        time.clock_settime_ns(time.CLOCK_REALTIME, now.ToNanoseconds())

    def _place_files(self) -> None:
        """The kernel's own boot id is fixed for a boot, and a clone has not booted: so it has a file, too."""
        for path in (HOSTNAME, MACHINE_ID, BOOT_ID):
            if path not in self._files:
                self._files[path] = OwnFile(path)

    def settle(self) -> None:
        """Leave little that a clone would copy: nobody counts or visits what is there now."""
        gc.collect()
        immortalize()
        gc.freeze()
        map_files()
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1\n")  # names stay: each clone would look them up again


def _uuid(raw: bytearray) -> str:
    """Version 4, as the kernel writes it."""
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
