"""KVM counts only where a kernel has booted with it; every reason not to use it has a name."""

import json
from pathlib import Path

import pytest

from node_agent.drivers import proof
from node_agent.drivers.proof import host_cpu
from node_agent.drivers.qemu.probe import VERDICT_FILE, Probe, boot_failure
from sandpool_image.build import build

# Exists everywhere and may be opened: only a boot can tell that it is no /dev/kvm.
DEVICE = Path("/dev/null")


def put_image(cache: Path) -> None:
    """One whose kernel no machine boots."""
    image = cache / "images" / "x"
    image.mkdir(parents=True)
    (image / "vmlinux").write_text("no kernel")
    (image / "initramfs").touch()


async def test_without_the_device_it_is_emulation_at_once(tmp_path: Path) -> None:
    put_image(tmp_path)
    chosen = await Probe(tmp_path, tmp_path / "kvm").acceleration()
    assert (chosen.name, chosen.detail) == ("emulation", f"{tmp_path}/kvm is missing")
    assert not (tmp_path / VERDICT_FILE).exists()


async def test_without_an_image_the_choice_stays_open(tmp_path: Path) -> None:
    opened = Probe(tmp_path, DEVICE)
    assert "not proven yet" in (await opened.acceleration()).detail
    put_image(tmp_path)
    assert "does not boot a guest" in (await opened.acceleration()).detail
    assert "not proven yet" in (await Probe(None, DEVICE).acceleration()).detail


async def test_a_verdict_holds_for_one_boot_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_image(tmp_path)
    first = await Probe(tmp_path, DEVICE).acceleration()
    (tmp_path / "images").rename(tmp_path / "none")
    assert await Probe(tmp_path, DEVICE).acceleration() == first
    assert json.loads((tmp_path / VERDICT_FILE).read_text())["name"] == "none"
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(proof, "BOOT_ID", tmp_path / "boot")
    assert "not proven yet" in (await Probe(tmp_path, DEVICE).acceleration()).detail


async def test_a_spoilt_verdict_is_none(tmp_path: Path) -> None:
    (tmp_path / VERDICT_FILE).write_text("{}")
    assert "not proven yet" in (await Probe(tmp_path, DEVICE).acceleration()).detail


@pytest.mark.vm
async def test_the_probe_boots_the_guests_kernel() -> None:
    kernel = build(Path.home() / ".cache" / "sandpool", lambda message, _: print(message)).kernel
    assert await boot_failure("emulation", kernel.parent, seconds=60) == ""
    assert await boot_failure("emulation", kernel.parent, seconds=0.01) == "nothing ran within 0.01 s"


def test_the_cpu_of_the_host_has_one_name() -> None:
    assert host_cpu() == host_cpu()
