"""Cloud Hypervisor where it is proven, QEMU else; and whose VM is whose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from node_agent.__main__ import choose
from node_agent.config import Config
from node_agent.drivers.choice import ChosenVmm
from node_agent.drivers.process import VmProcess
from node_agent.vmm import Acceleration, GuestAddress, Image, MachineSpec, RunningVm
from service_kit.config import ConfigError

MACHINE = MachineSpec(1, 1 << 20, 1 << 20)
IMAGE = Image(Path("k"), Path("i"), Path("r"), Path("s"), "image")


class Driver:
    """Remembers what it is asked for."""

    def __init__(self, name: str, failure: str | None = "") -> None:
        self.name = self.transport = name
        self.why: str | None = failure
        self.asked: list[str] = []

    async def failure(self) -> str | None:
        return self.why

    def made(self, directory: Path) -> bool:
        return directory.name == self.name

    async def probe(self) -> Acceleration:
        return Acceleration("kvm", f"{self.name} is well")

    async def fingerprint(self) -> str:
        return f"of {self.name}"

    async def build(
        self, image: Image, machine: MachineSpec, directory: Path, quiesce: Callable[[GuestAddress], Awaitable[None]]
    ) -> None:
        self.asked.append("build")

    async def clone(self, template: Path, machine: MachineSpec, directory: Path) -> RunningVm:
        self.asked.append("clone")
        return Vm(self.name)

    async def hibernate(self, vm: RunningVm, directory: Path) -> None:
        self.asked.append("hibernate")

    async def recover(self, directory: Path) -> RunningVm | None:
        self.asked.append("recover")
        return None


class Vm:
    """Of a driver."""

    def __init__(self, transport: str) -> None:
        self.address = GuestAddress(transport, ())

    exited, destroy = VmProcess.exited, VmProcess.destroy


def pair(failure: str | None) -> tuple[Driver, Driver, ChosenVmm]:
    preferred, other = Driver("cloud-hypervisor", failure), Driver("qemu")
    return preferred, other, ChosenVmm(preferred, other)


async def nothing(_: GuestAddress) -> None:
    return


async def test_what_is_proven_is_used() -> None:
    preferred, other, vmm = pair("")
    assert await vmm.fingerprint() == "of cloud-hypervisor" and vmm.name == "cloud-hypervisor"
    assert await vmm.probe() == Acceleration("kvm", "cloud-hypervisor is well")
    await vmm.build(IMAGE, MACHINE, Path("x"), nothing)
    await vmm.clone(Path("t"), MACHINE, Path("x"))
    assert (preferred.asked, other.asked) == (["build", "clone"], [])


async def test_what_fails_is_not_and_everybody_is_told_why() -> None:
    preferred, other, vmm = pair("it is not installed")
    assert await vmm.fingerprint() == "of qemu" and vmm.name == "qemu"
    assert (await vmm.probe()).detail == "qemu is well; cloud-hypervisor is not used: it is not installed"
    await vmm.clone(Path("t"), MACHINE, Path("x"))
    assert (preferred.asked, other.asked) == ([], ["clone"])


async def test_the_choice_stays_open_until_it_can_be_proven_and_is_made_once() -> None:
    preferred, _, vmm = pair(None)
    assert vmm.name == "qemu" and "as soon as a guest image proves" in (await vmm.probe()).detail
    preferred.why = ""
    await vmm.fingerprint()
    assert vmm.name == "cloud-hypervisor"
    preferred.why = "it has gone away"
    assert await vmm.fingerprint() == "of cloud-hypervisor"


async def test_a_vm_belongs_to_the_driver_that_made_it() -> None:
    preferred, other, vmm = pair("it has gone away")
    await vmm.recover(Path("cloud-hypervisor"))
    await vmm.hibernate(Vm("cloud-hypervisor"), Path("x"))
    assert (preferred.asked, other.asked) == (["recover", "hibernate"], [])
    await vmm.recover(Path("qemu"))
    await vmm.hibernate(Vm("qemu"), Path("x"))
    assert other.asked == ["recover", "hibernate"]


@pytest.mark.parametrize("driver", ["auto", "cloud-hypervisor", "qemu", "fake"])
def test_every_driver_has_a_name_in_the_settings(tmp_path: Path, driver: str) -> None:
    vmm, _ = choose(Config((), tmp_path, tmp_path, "", driver=driver))
    assert vmm.name == ("qemu" if driver == "auto" else driver)


def test_an_unknown_driver_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'driver': unknown driver 'xen'"):
        choose(Config((), tmp_path, tmp_path, "", driver="xen"))
