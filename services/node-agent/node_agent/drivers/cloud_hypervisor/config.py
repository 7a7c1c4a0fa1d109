"""The configuration of a VMM: of a template's VM, and what must change in it for each clone. Pure.

Paths are relative to the VMM's working directory, or name descriptors that it inherits: its user may not be able to
reach the files of templates and images by their paths, and needs not.
"""

import json
from copy import deepcopy
from typing import Any

from node_agent.drivers import kernel
from node_agent.vmm import MachineSpec

Config = dict[str, Any]

CMDLINE = f"{kernel.CMDLINE} reboot=t clocksource=kvm-clock i8042.noaux i8042.nokbd 8250.nr_uarts=1 console=ttyS0"
# The address of every guest: with hybrid vsock it means something only inside its VMM.
GUEST_CID = 3
VSOCK, SCRATCH, CONSOLE = "vsock", "scratch", "console"
# What a VM is restored from, and what it is saved to.
RESTORED, SAVED = "restored", "saved"
# A reboot needs a kernel to boot: without one it ends the VMM.
NO_KERNEL = "/nonexistent"


class BadConfig(Exception):
    """A snapshot's configuration is not that of a template of ours."""


def inherited(descriptor: int) -> str:
    """The path of an open file."""
    return f"/proc/self/fd/{descriptor}"


def template(machine: MachineSpec, vmlinux: str, initramfs: str, root: str, memory: str) -> Config:
    """For vm.create: all memory in one file that is shared, as a snapshot then leaves it there."""
    zone = {"id": "ram", "size": machine.memory_bytes, "file": memory, "shared": True}
    return {
        # Names of our own: a snapshot finds the state of a device by its id.
        "cpus": {"boot_vcpus": machine.vcpus, "max_vcpus": machine.vcpus, "nested": False},
        "memory": {"size": 0, "thp": False, "zones": [zone]},
        "payload": {"kernel": vmlinux, "initramfs": initramfs, "cmdline": CMDLINE},
        "pmem": [{"id": "root", "file": root, "discard_writes": True}],
        "disks": [{"id": "scratch", "path": SCRATCH, "image_type": "Raw"}],
        "rng": {"src": "/dev/urandom"},
        "vsock": {"id": "vsock", "cid": GUEST_CID, "socket": f"./{VSOCK}"},
        "serial": {"mode": "File", "file": CONSOLE},
        "console": {"mode": "Off"},
        "pvpanic": True,
        **_landlock(),
    }


def clone(frozen: Config, machine: MachineSpec, root: str, memory: str) -> Config:
    """The config.json of a template or of a hibernated VM, for a private copy. Raises BadConfig."""
    config = deepcopy(frozen)
    try:
        (zone,), (pmem,), (disk,) = config["memory"]["zones"], config["pmem"], config["disks"]
        if zone["size"] != machine.memory_bytes or config["cpus"]["boot_vcpus"] != machine.vcpus:
            raise BadConfig("its machine is another")
        config["memory"]["shared"] = False
        zone.update(file=memory, shared=False)  # opened for reading only, mapped privately
        pmem.update(file=root, discard_writes=True)
        disk.update(path=SCRATCH)
        config["vsock"].update(socket=f"./{VSOCK}")  # the address stays: the guest's kernel has read it
        config["payload"].pop("initramfs", None)  # would be opened even now
        config["payload"]["kernel"] = NO_KERNEL
        for net in config.get("net") or ():
            net["host_mac"] = None  # what was found out of the template's tap would be set on ours
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadConfig(f"its configuration is not one of ours: {error!r}") from error
    # What a guest writes to its console must not fill the host.
    config.update(serial={"mode": "Null"}, console={"mode": "Off"}, **_landlock())
    return config


def _landlock() -> Config:
    """Its working directory; the VMM itself adds what the configuration names, as it is named there."""
    return {"landlock_enable": True, "landlock_rules": [{"path": ".", "access": "rw"}]}


def without_memory(state: Config, file_bytes: int) -> Config:
    """The state.json of a VM whose memory was saved to a file, for a restore that maps the file instead of reading it.

    Raises BadConfig where the file is not simply the guest's memory from its first byte to its last.
    """
    changed = deepcopy(state)
    try:
        holder = changed["snapshots"]["memory-manager"]["snapshot_data"]
        manager = json.loads(holder["state"])
        offset = 0
        for mapping, region in zip(manager["guest_ram_mappings"], manager["memory_ranges"]["data"], strict=True):
            if (mapping["file_offset"], mapping["gpa"], mapping["size"]) != (offset, region["gpa"], region["length"]):
                raise BadConfig("its memory is not in one piece")
            offset += region["length"]
        if offset != file_bytes:
            raise BadConfig(f"{file_bytes} bytes of memory were saved, not {offset}")
        manager["memory_ranges"]["data"] = []
        holder["state"] = json.dumps(manager)
    except (KeyError, TypeError, ValueError) as error:
        raise BadConfig(f"its state is not one of ours: {error!r}") from error
    return changed
