"""The command line of the emulated host's QEMU. Pure."""

from dataclasses import dataclass
from pathlib import Path

from sandpool_kvmhost.process import PID_FILE

PROGRAM = "qemu-system-x86_64"
# Disks that come later are plugged into one of these.
SLOT = "slot0"
CMDLINE = (
    "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable no_timer_check random.trust_cpu=on mitigations=off "
    "cryptomgr.notests"
)


@dataclass(frozen=True)
class HostSpec:
    """How large the host is, and after how many minutes without a user it ends.

    One CPU: a kernel that patches its own code while another emulated CPU runs it panics now and then ("int3").
    """

    cpus: int = 1
    memory_mb: int = 8192
    idle_minutes: int = 120

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.memory_mb < 1024 or self.idle_minutes < 1:
            raise ValueError(f"the host needs a CPU, 1024 MiB and a minute: {self}")


def quoted(path: Path) -> str:
    """As the value of an option: QEMU splits at single commas."""
    return str(path).replace(",", ",,")


def arguments(spec: HostSpec, image: Path, port: int) -> list[str]:
    """For a process whose working directory has the file disk; it makes the sockets and logs there."""
    command = [PROGRAM, "-M", "q35", "-nodefaults", "-display", "none", "-no-reboot", "-name", "sandpool-kvmhost"]
    command += ["-daemonize", "-pidfile", PID_FILE]
    # An AMD processor with nested paging: Linux's kvm_amd runs on it, and stock guests on that.
    command += ["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,+svm,+npt"]
    command += ["-smp", str(spec.cpus), "-m", f"{spec.memory_mb}M"]
    command += ["-kernel", str(image / "vmlinux"), "-initrd", str(image / "initramfs")]
    command += ["-append", f"{CMDLINE} kvmhost.idle_minutes={spec.idle_minutes}"]
    command += ["-serial", "file:console", "-qmp", "unix:qmp,server=on,wait=off"]
    root = f"file={quoted(image / 'root.erofs')},format=raw,if=none,id=root,readonly=on"
    command += ["-drive", root, "-device", "virtio-blk-pci,drive=root"]
    disk = "file=disk,format=raw,if=none,id=disk,cache=unsafe,discard=unmap"
    command += ["-drive", disk, "-device", "virtio-blk-pci,drive=disk"]
    command += ["-device", f"pcie-root-port,id={SLOT},chassis=1,slot=1"]
    # No way out of it, and one way in.
    forward = f"hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:22"
    command += ["-netdev", f"user,id=net,restrict=on,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
    return command
