"""Which Cloud Hypervisor is used, and why another is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.drivers.cloud_hypervisor import probe
from node_agent.drivers.cloud_hypervisor.driver import CloudHypervisorVmm, Settings
from node_agent.drivers.cloud_hypervisor.probe import Installation, NotUsable, Version, boot_failure, find_program

# Exists everywhere and may be opened: only a boot can tell that it is no /dev/kvm.
DEVICE = Path("/dev/null")


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def saying(path: Path, version: str) -> Path:
    return program(path, f"echo cloud-hypervisor {version}")


@pytest.mark.parametrize("text", ["v53.0", "cloud-hypervisor v53.0-dirty", "v51.2", "v51.3", "54.0.0", "v100.12"])
def test_versions_that_are_used(text: str) -> None:
    Version.parse(text).check()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cloud-hypervisor v51.1", "too old"),
        ("v28.0", "too old"),
        ("v52.0", "twice"),
        ("v52.1.7", "twice"),
        ("", "no version"),
        ("cloud-hypervisor", "no version"),
    ],
)
def test_versions_that_are_not(text: str, reason: str) -> None:
    with pytest.raises(NotUsable, match=reason):
        Version.parse(text).check()


def test_where_the_program_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(NotUsable, match=f"nor at {tmp_path}/cache/bin"):
        find_program("", tmp_path / "cache")
    cached = saying(tmp_path / "cache/bin/cloud-hypervisor", "v53.0")
    assert find_program("", tmp_path / "cache") == cached
    installed = saying(tmp_path / "path/cloud-hypervisor", "v53.0")
    assert find_program("", tmp_path / "cache") == installed
    assert find_program(str(cached), tmp_path) == cached
    with pytest.raises(NotUsable, match="nothing"):
        find_program(str(tmp_path / "nothing"), tmp_path / "cache")


async def test_a_program_is_asked_again_when_it_is_another(tmp_path: Path) -> None:
    path = saying(tmp_path / "ch", "v53.0")
    installation = Installation(str(path), tmp_path, DEVICE)
    assert str(await installation.version()) == "v53.0"
    path.unlink()
    saying(path, "v52.0")
    with pytest.raises(NotUsable, match="twice"):
        await installation.version()
    assert "twice" in (await installation.failure() or "")


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$", "echo hello"])
async def test_a_program_that_is_something_else(tmp_path: Path, script: str) -> None:
    installation = Installation(str(program(tmp_path / "ch", script)), tmp_path, DEVICE)
    with pytest.raises(NotUsable):
        await installation.version()


async def test_kvm_is_proven_by_a_boot_and_by_nothing_less(tmp_path: Path) -> None:
    image = tmp_path / "images" / "x"
    path = program(tmp_path / "ch", 'case "$*" in *--version*) echo v53.0 ;; *) echo "no KVM here" >&2; exit 1 ;; esac')
    installation = Installation(str(path), tmp_path, DEVICE)
    assert await installation.failure() is None
    image.mkdir(parents=True)
    (image / "vmlinux").touch()
    assert await installation.failure() == "KVM does not boot a guest: no KVM here"
    (tmp_path / probe.VERDICT_FILE).unlink()
    boots = program(
        tmp_path / "ch2", 'case "$*" in *--version*) echo v53.0 ;; *) echo sandpool-proven; sleep 1000 ;; esac'
    )
    assert await Installation(str(boots), tmp_path, DEVICE).failure() == ""


async def test_a_guest_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    assert await boot_failure(program(tmp_path / "ch", "sleep 1000"), tmp_path, 0.1) == "nothing ran within 0.1 s"


async def test_a_driver_without_a_program_says_so(tmp_path: Path) -> None:
    acceleration = await CloudHypervisorVmm(Settings(str(tmp_path / "ch"), tmp_path, allow_unconfined=True)).probe()
    assert acceleration.name == "none" and "not installed" in acceleration.detail
