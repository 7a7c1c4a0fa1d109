"""Where a host lends no cgroups, VMs go without, and it is said why. The contract tests have real ones."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node_agent.drivers.cloud_hypervisor import cgroups
from node_agent.drivers.cloud_hypervisor.cgroups import Cgroups
from node_agent.vmm import MachineSpec

MACHINE = MachineSpec(2, 512 << 20, 1 << 30)


def hierarchy(root: Path, controllers: str) -> Path:
    """Files with the names of cgroups."""
    (root / "cgroup.controllers").write_text(controllers)
    return root


async def test_without_version_2_there_are_none_and_nothing_happens(tmp_path: Path) -> None:
    found = Cgroups.find(tmp_path)
    assert found.missing == "this host has no cgroups of version 2"
    assert found.path(tmp_path) is None and found.name(tmp_path) is None
    found.place(tmp_path, os.getpid(), MACHINE)
    found.lift_memory(tmp_path)
    await found.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_controllers_that_are_not_lent_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_base", lambda root: root)
    assert Cgroups.find(hierarchy(tmp_path, "io memory")).missing == "this process may not limit cpu, pids"


def test_what_is_not_ours_to_divide_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cgroups, "_delegated", lambda group: False)
    assert "no cgroup is delegated" in Cgroups.find(hierarchy(tmp_path, "cpu memory pids")).missing
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.controllers"]


async def test_a_vms_group_has_its_limits_and_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_base", lambda root: root)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    found = Cgroups.find(hierarchy(tmp_path, "cpu memory pids"))
    one, other = found.path(Path("/a/vms/v1")), found.path(Path("/b/vms/v1"))
    assert one is not None and other is not None and one != other and one.parent == tmp_path / "sandpool"
    assert found.name(Path("/a/vms/v1")) == f"/sandpool/{one.name}"
    assert (tmp_path / "sandpool" / "cpu.max").read_text() == f"{os.cpu_count()}00000 100000"
    found.place(Path("/a/vms/v1"), 7, MACHINE)
    written = {path.name: path.read_text() for path in one.iterdir()}
    assert written["memory.max"] == str((512 << 20) + (96 << 20)) and written["cpu.max"] == "300000 100000"
    assert written["cgroup.procs"] == "7" and written["memory.swap.max"] == "0"
    found.lift_memory(Path("/a/vms/v1"))
    assert (one / "memory.max").read_text() == "max"
    with capture_logs() as said:
        await found.remove(Path("/a/vms/v1"))
    assert (one / "cgroup.kill").read_text() == "1"
    assert [line["event"] for line in said] == ["cgroup_stays"]  # files with such names go with no directory
