"""The command line of a QEMU: the same devices for a template and for each of its clones. Pure."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from node_agent.drivers.kernel import CMDLINE
from node_agent.vmm import Image, MachineSpec

PROGRAM = "qemu-system-x86_64"
PORTS = 8
# An emulated CPU guesses nothing ahead: there is nothing to hide from it.
EMULATED = "mitigations=off"
# The translation cache is most of an idle clone's memory; above this it is flushed, not grown.
TRANSLATION_CACHE_MB = 128


class Role(Enum):
    """What a QEMU is there for.

    A template boots with its memory shared with the file, a clone waits for a state with the file mapped privately. A
    writer waits for the state of a clone that hibernates, and never runs it: what comes in as memory goes to the file.
    """

    TEMPLATE = "template"
    CLONE = "clone"
    WRITER = "writer"


@dataclass(frozen=True)
class Launch:
    """One QEMU. acceleration is the name of an Acceleration, memory the file."""

    image: Image
    machine: MachineSpec
    acceleration: str
    memory: Path
    root_bytes: int
    role: Role
    qmp_descriptor: int


def cpu(acceleration: str) -> list[str]:
    """What runs instructions, by the name of an Acceleration."""
    if acceleration == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,tb-size={TRANSLATION_CACHE_MB}", "-cpu", "max"]


def quoted(path: Path) -> str:
    """As the value of an option: QEMU splits at single commas."""
    return str(path).replace(",", ",,")


def arguments(launch: Launch) -> list[str]:
    """For a process whose working directory is the VM's: paths there are relative, as socket paths are short."""
    size = launch.machine.memory_bytes
    boots = launch.role is Role.TEMPLATE
    share = "off" if launch.role is Role.CLONE else "on"
    command = [PROGRAM, "-M", "q35", "-nodefaults", "-nographic", "-no-reboot"]
    command += [*cpu(launch.acceleration), "-smp", str(launch.machine.vcpus)]
    command += ["-m", f"size={size >> 20}M,slots=2,maxmem={(size >> 20) + 8192}M"]
    command += ["-object", f"memory-backend-file,id=ram,size={size},share={share},mem-path={quoted(launch.memory)}"]
    command += ["-numa", "node,memdev=ram"]
    command += ["-kernel", str(launch.image.kernel), "-initrd", str(launch.image.initramfs)]
    words = CMDLINE if launch.acceleration == "kvm" else f"{CMDLINE} {EMULATED}"
    command += ["-append", f"{words} console=ttyS0" if boots else words]
    # A clone's console goes nowhere: what a guest writes must not fill the host.
    command += ["-serial", "file:console" if boots else "null"]
    command += ["-chardev", f"socket,id=qmp,fd={launch.qmp_descriptor},server=on,wait=off"]
    command += ["-mon", "chardev=qmp,mode=control", "-device", f"virtio-serial-pci,max_ports={PORTS + 1}"]
    for number in range(PORTS):
        command += ["-chardev", f"socket,id=port{number},path=port{number},server=on,wait=off"]
        command += ["-device", f"virtserialport,chardev=port{number},name=sandpool.{number}"]
    root = f"id=rootmem,share=on,readonly=on,mem-path={quoted(launch.image.root)},size={launch.root_bytes}"
    command += ["-object", f"memory-backend-file,{root}", "-device", "virtio-pmem-pci,memdev=rootmem,id=root"]
    command += ["-drive", "file=scratch,format=raw,if=none,id=scratch", "-device", "virtio-blk-pci,drive=scratch"]
    return command + ([] if boots else ["-incoming", "defer"])
