"""Each finding of the doctor: what is seen, what to do about it, and what is used until then."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from sandpool.cli import doctor, vmm_checks
from sandpool.cli.finding import MISSING, OK, WARN, Finding


def program(directory: Path, name: str, says: str, status: int = 0) -> Path:
    """One that says something to --version."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of PATH, empty."""
    directory = tmp_path / "path"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def verdict(cache: Path, file: str, name: str, detail: str, boot: str = "") -> None:
    key = [boot or vmm_checks.BOOT_ID.read_text().strip(), "version"]
    (cache / file).write_text(json.dumps({"key": key, "name": name, "detail": detail}))


def test_every_check_says_something_and_every_trouble_has_a_remedy() -> None:
    found = doctor.examine()
    names = [finding.name for finding in found]
    assert len(set(names)) == len(names)
    assert {"kvm", "cloud-hypervisor", "vsock", "open files", "memory", "cgroups", "userfaultfd"} <= set(names)
    assert all(finding.detail for finding in found)
    assert all(bool(finding.remedy) == (finding.status != OK) for finding in found)
    assert doctor.as_json(found)[0]["name"] == "python"


def test_qemu(path: Path) -> None:
    assert vmm_checks.qemu().status == MISSING
    program(path, "qemu-system-x86_64", "QEMU 7")
    assert vmm_checks.qemu() == Finding("qemu", OK, "QEMU 7")


def test_no_cloud_hypervisor(path: Path, tmp_path: Path) -> None:
    found = vmm_checks.cloud_hypervisor(tmp_path)
    assert (found.status, found.detail, found.instead) == (WARN, "not installed", "QEMU")
    assert "doctor --fix" in found.remedy


@pytest.mark.parametrize(
    ("says", "status", "detail"),
    [
        ("cloud-hypervisor v53.0", OK, r"v53.0 at {}"),
        ("cloud-hypervisor v53.0-dirty", OK, r"v53.0 at {}"),
        ("cloud-hypervisor v51.2", OK, r"v51.2 at {} (v53.0 is what is tested)"),
        ("cloud-hypervisor v51.1", WARN, r"v51.1 at {} is too old"),
        ("cloud-hypervisor v48.0", WARN, r"v48.0 at {} is too old"),
        ("cloud-hypervisor v52.0", WARN, r"v52.0 at {} holds the memory of every clone twice"),
        ("something else", WARN, r"{} does not tell its version"),
    ],
)
def test_versions_of_cloud_hypervisor(path: Path, tmp_path: Path, says: str, status: str, detail: str) -> None:
    binary = program(tmp_path / "bin", "cloud-hypervisor", says)
    found = vmm_checks.cloud_hypervisor(tmp_path)
    assert (found.status, found.detail) == (status, detail.format(binary))
    assert bool(found.remedy) == bool(found.instead) == (status != OK)


def test_the_one_of_path_comes_first(path: Path, tmp_path: Path) -> None:
    in_cache = program(tmp_path / "bin", "cloud-hypervisor", "v53.0")
    assert vmm_checks.find_cloud_hypervisor(tmp_path) == in_cache
    in_path = program(path, "cloud-hypervisor", "v53.0")
    assert vmm_checks.find_cloud_hypervisor(tmp_path) == in_path


def test_a_program_that_does_not_run_is_no_version(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cloud-hypervisor").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "bin" / "cloud-hypervisor").chmod(0o755)
    assert "does not tell" in vmm_checks.cloud_hypervisor(tmp_path).detail


def test_kvm_is_what_a_boot_has_proven(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert vmm_checks.kvm(device, tmp_path).detail == f"there is no {device}"
    device.touch()
    assert vmm_checks.kvm(device, tmp_path) == Finding(
        "kvm", OK, f"{device} is there; proven by a boot before it is used"
    )
    verdict(tmp_path, "acceleration.json", "emulation", "does not boot")
    found = vmm_checks.kvm(device, tmp_path)
    assert (found.status, found.detail) == (WARN, "QEMU: does not boot") and "emulation" in found.instead
    assert "acceleration*.json" in found.remedy
    verdict(tmp_path, "acceleration-cloud-hypervisor.json", "kvm", "boots a guest")
    found = vmm_checks.kvm(device, tmp_path)
    assert found.status == OK and "QEMU: does not boot; Cloud Hypervisor: boots a guest" in found.detail


def test_a_verdict_of_another_boot_or_of_no_sense_is_none(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    verdict(tmp_path, "acceleration.json", "emulation", "does not boot", boot="before")
    (tmp_path / "acceleration-cloud-hypervisor.json").write_text('{"key": []}')
    assert vmm_checks.kvm(device, tmp_path).status == OK


@pytest.mark.parametrize(
    ("limits", "status", "remedy"),
    [((4096, 4096), OK, ""), ((1024, 524288), WARN, "ulimit -n 4096"), ((1024, 1024), WARN, "LimitNOFILE")],
)
def test_open_files(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], status: str, remedy: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    (found,) = (finding for finding in doctor.examine() if finding.name == "open files")
    assert found.status == status and found.remedy.startswith(remedy)
