"""The configuration of VMMs, on what Cloud Hypervisor v53 writes into a snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from node_agent.drivers.cloud_hypervisor.config import BadConfig, clone, template, without_memory
from node_agent.vmm import MachineSpec

MACHINE = MachineSpec(1, 512 << 20, 1 << 30)
# config.json of a template's snapshot.
FROZEN: dict[str, Any] = json.loads("""
{"cpus":{"boot_vcpus":1,"max_vcpus":1,"topology":null,"kvm_hyperv":false,"max_phys_bits":46,"affinity":null,
  "features":{"amx":false},"nested":false,"core_scheduling":"Vm"},
 "memory":{"size":0,"mergeable":false,"hotplug_method":"Acpi","hotplug_size":null,"hotplugged_size":null,
  "shared":false,"hugepages":false,"hugepage_size":null,"prefault":false,"reserve":true,
  "zones":[{"id":"ram","size":536870912,"file":"/proc/self/fd/9","shared":true,"hugepages":false,"prefault":false}],
  "thp":false},
 "payload":{"kernel":"/proc/self/fd/6","cmdline":"quiet","initramfs":"/proc/self/fd/7"},
 "disks":[{"id":"scratch","path":"scratch","readonly":false,"image_type":"Raw"}],
 "net":[{"id":"net0","tap":"t0","mac":"2e:00:00:00:00:01","host_mac":"aa:00:00:00:00:02"}],
 "rng":{"src":"/dev/urandom"},"pmem":[{"id":"root","file":"/proc/self/fd/8","discard_writes":true}],
 "serial":{"mode":"File","file":"console"},"console":{"mode":"Off"},
 "vsock":{"id":"vsock","cid":3,"socket":"./vsock"},"pvpanic":true,
 "landlock_enable":false,"landlock_rules":null}
""")


def test_a_clone_maps_memory_privately_and_reaches_nothing_else() -> None:
    before = deepcopy(FROZEN)
    config = clone(FROZEN, MACHINE, "/proc/self/fd/4", "/proc/self/fd/5")
    assert before == FROZEN
    (zone,), (pmem,), (disk,) = config["memory"]["zones"], config["pmem"], config["disks"]
    assert (zone["file"], zone["shared"], config["memory"]["shared"]) == ("/proc/self/fd/5", False, False)
    assert (pmem["file"], pmem["discard_writes"]) == ("/proc/self/fd/4", True)
    assert (disk["path"], config["vsock"]["socket"], config["vsock"]["cid"]) == ("scratch", "./vsock", 3)
    assert config["serial"] == {"mode": "Null"} and config["console"] == {"mode": "Off"}
    assert config["payload"] == {"kernel": "/nonexistent", "cmdline": "quiet"}
    assert config["net"][0]["host_mac"] is None and config["net"][0]["mac"] == "2e:00:00:00:00:01"
    assert config["landlock_enable"] is True
    assert config["landlock_rules"] == [{"path": ".", "access": "rw"}]


def test_what_a_clone_does_not_need_to_change_stays() -> None:
    config = clone(FROZEN, MACHINE, "r", "m")
    assert config["cpus"] == FROZEN["cpus"] and config["rng"] == FROZEN["rng"] and config["pvpanic"] is True
    assert [config[kind][0]["id"] for kind in ("pmem", "disks", "net")] == ["root", "scratch", "net0"]


def test_a_template_becomes_a_clone() -> None:
    made = template(MACHINE, "k", "i", "r", "m")
    assert made["memory"]["zones"][0]["shared"] is True and made["memory"]["size"] == 0
    assert made["cpus"] == {"boot_vcpus": 1, "max_vcpus": 1, "nested": False}
    assert clone(made, MACHINE, "r2", "m2")["memory"]["zones"][0]["file"] == "m2"


def drop(*path: str | int) -> Callable[[dict[str, Any]], object]:
    def damage(config: Any) -> None:
        for key in path[:-1]:
            config = config[key]
        del config[path[-1]]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        drop("memory"),
        drop("memory", "zones", 0),
        drop("memory", "zones", 0, "size"),
        drop("cpus", "boot_vcpus"),
        drop("disks", 0),
        drop("vsock"),
        drop("payload"),
        lambda config: config.update(pmem=None),
        lambda config: config.update(vsock=7),
        lambda config: config.update(net=[7]),
        lambda config: config["disks"].append({"id": "other", "path": "/etc/shadow"}),
        lambda config: config["memory"]["zones"][0].update(size=1),
        lambda config: config["cpus"].update(boot_vcpus=2),
    ],
)
def test_another_configuration_is_refused(damage: Callable[[dict[str, Any]], object]) -> None:
    config = deepcopy(FROZEN)
    damage(config)
    with pytest.raises(BadConfig):
        clone(config, MACHINE, "r", "m")


def state(regions: list[dict[str, int]], mappings: list[dict[str, Any]]) -> dict[str, Any]:
    manager = {"memory_ranges": {"data": regions}, "guest_ram_mappings": mappings, "boot_ram": 512 << 20}
    holder = {"snapshots": {}, "snapshot_data": {"state": json.dumps(manager)}}
    return {"snapshots": {"memory-manager": holder, "cpu-manager": {}}, "snapshot_data": {}}


def mapping(gpa: int, size: int, file_offset: int) -> dict[str, Any]:
    return {"slot": 0, "gpa": gpa, "size": size, "zone_id": "ram", "virtio_mem": False, "file_offset": file_offset}


def test_a_saved_memory_is_mapped_and_not_read() -> None:
    saved = state([{"gpa": 0, "length": 100}], [mapping(0, 100, 0)])
    changed = without_memory(saved, 100)
    manager = json.loads(changed["snapshots"]["memory-manager"]["snapshot_data"]["state"])
    assert manager["memory_ranges"] == {"data": []} and manager["guest_ram_mappings"] == [mapping(0, 100, 0)]
    assert changed["snapshots"]["cpu-manager"] == {}
    both = state([{"gpa": 0, "length": 3}, {"gpa": 4, "length": 2}], [mapping(0, 3, 0), mapping(4, 2, 3)])
    assert without_memory(both, 5) != both


@pytest.mark.parametrize(
    ("saved", "file_bytes"),
    [
        (state([{"gpa": 0, "length": 100}], [mapping(0, 100, 0)]), 99),
        (state([{"gpa": 0, "length": 100}], [mapping(0, 100, 7)]), 100),
        (state([{"gpa": 5, "length": 100}], [mapping(0, 100, 0)]), 100),
        (state([{"gpa": 0, "length": 50}, {"gpa": 50, "length": 50}], [mapping(0, 100, 0)]), 100),
        (state([], []), 100),
        ({}, 0),
        ({"snapshots": {"memory-manager": {"snapshot_data": {"state": "{"}}}}, 0),
        ({"snapshots": {"memory-manager": {"snapshot_data": {"state": "[]"}}}}, 0),
    ],
)
def test_a_memory_that_cannot_be_mapped_as_it_is_is_refused(saved: dict[str, Any], file_bytes: int) -> None:
    with pytest.raises(BadConfig):
        without_memory(saved, file_bytes)
