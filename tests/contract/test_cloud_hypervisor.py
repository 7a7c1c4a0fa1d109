"""The Cloud Hypervisor driver passes the behaviour suite, on real VMs with KVM, and what is special about it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent.drivers.cloud_hypervisor.api import Api, ApiError
from node_agent.drivers.cloud_hypervisor.cgroups import Cgroups
from node_agent.drivers.cloud_hypervisor.confine import Confinement
from node_agent.drivers.cloud_hypervisor.driver import CloudHypervisorVmm, Settings
from node_agent.drivers.process import recorded_pid
from node_agent.vmm import CloneFailed, Image
from sandpool_image.build import build, make_scratch

from .guest_init import until_it_waits, with_init
from .hibernate_suite import *  # noqa: F403
from .site import MACHINE, Driver, Site, digest, open_site
from .vmm_suite import *  # noqa: F403

pytestmark = pytest.mark.cloud_hypervisor
CACHE = Path.home() / ".cache" / "sandpool"
IN_A_ROW = 50
UNIQUE = 200


def cut(path: Path, size: int) -> None:
    path.chmod(0o600)
    os.truncate(path, size)


def rewrite(path: Path, **changes: Any) -> None:
    path.chmod(0o600)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES = {
    "half a state": lambda template: cut(template / "state.json", 10_000),
    "no state": lambda template: (template / "state.json").unlink(),
    "an empty state": lambda template: cut(template / "state.json", 0),
    "half a memory": lambda template: cut(template / "memory", MACHINE.memory_bytes // 2),
    "no memory": lambda template: (template / "memory").unlink(),
    "no scratch disk": lambda template: (template / "scratch").unlink(),
    "half a scratch disk": lambda template: cut(template / "scratch", MACHINE.disk_bytes // 2),
    "no description": lambda template: (template / "bundle.json").unlink(),
    "half a description": lambda template: cut(template / "bundle.json", 10),
    "another description": lambda template: rewrite(template / "bundle.json", config={"cpus": {}}),
    "another version": lambda template: rewrite(template / "bundle.json", version="v54.0"),
    "another root": lambda template: rewrite(template / "bundle.json", root="/nonexistent"),
}


@pytest.fixture(scope="module")
def whole_run() -> Iterator[Site]:
    """One template, of the image of this source tree."""
    paths = build(CACHE, lambda message, _: print(message))
    why_not = asyncio.run(CloudHypervisorVmm().failure())
    if why_not:
        pytest.skip(why_not)
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        scratch = Path(directory) / "scratch"
        make_scratch(scratch, MACHINE.disk_bytes)
        image = Image(paths.kernel, paths.initramfs, paths.root, scratch, paths.image_id)
        path = "node_agent.drivers.cloud_hypervisor.driver:CloudHypervisorVmm"
        with open_site(Driver(path, True, image, DAMAGES, UNIQUE, at_a_time=2)) as site:
            yield site


# -- a guest that ends itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "said"), [("reboot -f", "rebooted"), ("exit 1", "panicked"), ("poweroff -f", "powered off")]
)
async def test_a_guest_that_ends_itself_is_gone_and_not_booted_again(
    site: Site, tmp_path: Path, deed: str, said: str
) -> None:
    image = replace(site.driver.image, initramfs=with_init(site.driver.image.initramfs, deed, tmp_path))
    template = tmp_path / "template"
    template.mkdir()
    await site.driver.make().build(image, MACHINE, template, until_it_waits)
    directory = site.directory(site.reserve())
    vm = await site.driver.make().clone(template, MACHINE, directory)
    assert said in await vm.exited()
    assert recorded_pid(directory) is None and site.processes() == []
    await vm.destroy()


async def test_a_guest_that_ends_before_it_is_frozen_is_no_template(site: Site, tmp_path: Path) -> None:
    image = replace(site.driver.image, initramfs=with_init(site.driver.image.initramfs, "reboot -f", tmp_path))
    template = tmp_path / "template"
    template.mkdir()
    with pytest.raises(CloneFailed, match="rebooted"):
        await site.driver.make().build(image, MACHINE, template, lambda _: asyncio.Event().wait())  # type: ignore[arg-type,return-value]
    assert [line for line in site.processes() if str(tmp_path) in line] == []


# -- a VMM that ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["vm.restore", "vm.resume"])
async def test_a_vmm_that_is_killed_at_any_step_of_a_clone_leaves_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str, is_after: bool
) -> None:
    directory = site.directory(site.reserve())
    put = Api.put

    async def killing(api: Api, endpoint: str, *arguments: Any, **options: Any) -> Any:
        pid = recorded_pid(directory)
        assert pid is not None
        if endpoint == step and not is_after:
            os.kill(pid, 9)
        answer = await put(api, endpoint, *arguments, **options)
        if endpoint == step:
            os.kill(pid, 9)
        return answer

    monkeypatch.setattr(Api, "put", killing)
    if (step, is_after) == ("vm.resume", True):
        vm = await site.driver.make().clone(site.template, MACHINE, directory)
        await vm.exited()
        await vm.destroy()
    else:
        with pytest.raises(CloneFailed):
            await site.driver.make().clone(site.template, MACHINE, directory)
    assert site.processes() == []
    assert await site.driver.make().recover(directory) is None
    assert not list(Path("/sys/fs/cgroup").rglob(f"{directory.name}-*"))


async def test_a_vmm_of_the_wrong_version_is_not_used(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "cloud-hypervisor"
    program.write_text("#!/bin/sh\necho cloud-hypervisor v52.0\n")
    program.chmod(0o755)
    vmm = CloudHypervisorVmm(Settings(program=str(program)))
    assert "v52.0 keeps the memory of every clone twice" in (await vmm.probe()).detail
    with pytest.raises(CloneFailed, match=r"v52\.0"):
        await vmm.clone(site.template, MACHINE, site.directory(site.reserve()))


# -- confinement -------------------------------------------------------------------------------------------------------


async def test_every_thread_of_a_vmm_is_confined(site: Site) -> None:
    one, other = await asyncio.gather(site.ready(), site.ready())
    users = set()
    for vm_id in (one, other):
        pid = recorded_pid(site.directory(vm_id))
        threads = {path.name: status(path / "status") for path in Path(f"/proc/{pid}/task").iterdir()}
        assert len(threads) > 5
        for thread, fields in threads.items():
            none = ["0000000000000000"]
            assert [fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [none] * 5
            assert fields["NoNewPrivs"] == ["1"]
            assert fields["Seccomp"] == ["0" if thread == str(pid) else "2"]
            assert len(set(fields["Uid"] + fields["Gid"])) == 1
            assert fields["Groups"] in ([], [str(Path("/dev/kvm").stat().st_gid)])
            users.add(int(fields["Uid"][0]))
    assert len(users) == 2 and all(uid >= Settings().uid_first for uid in users)


async def test_a_vmm_has_a_cgroup_with_limits_that_goes_with_it(site: Site) -> None:
    vm_id = await site.clone()
    pid, cgroups = recorded_pid(site.directory(vm_id)), Cgroups.find()
    assert cgroups.missing == ""
    group = cgroups.path(site.directory(vm_id))
    assert group is not None and (group / "cgroup.procs").read_text().split() == [str(pid)]
    limits = [(group / name).read_text().split()[0] for name in ("memory.max", "cpu.max", "pids.max")]
    assert limits == [str(MACHINE.memory_bytes + (96 << 20)), "200000", "128"]
    await site.vms[vm_id].destroy()
    assert not group.exists()


async def test_what_a_vmm_has_started_ends_with_it(site: Site) -> None:
    vm_id = await site.clone()
    group = Cgroups.find().path(site.directory(vm_id))
    assert group is not None
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    (group / "cgroup.procs").write_text(str(child.pid))
    await site.vms[vm_id].destroy()
    assert await child.wait() == -signal.SIGKILL
    assert not group.exists()


async def test_a_vmm_writes_to_nothing_outside_of_its_directory(site: Site) -> None:
    vm_id = await site.ready()
    pid = recorded_pid(site.directory(vm_id))
    written = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # of a connection that has just ended
            target, flags = str(link.readlink()), int(status(Path(f"/proc/{pid}/fdinfo/{link.name}"))["flags"][0], 8)
            if flags & (os.O_WRONLY | os.O_RDWR) and target.startswith("/") and not target.startswith("/dev/"):
                written.add(Path(target))
    assert written and all(path.is_relative_to(site.directory(vm_id)) for path in written), written


async def test_a_vmm_opens_nothing_that_was_not_meant_for_it(site: Site, tmp_path: Path) -> None:
    """Whoever has taken over a VMM can do no more than ask it through its API, which opens any path."""
    readable = tmp_path / "readable"
    readable.write_bytes(bytes(1 << 20))
    for path in (readable, *readable.parents):
        if path.is_relative_to("/tmp"):
            path.chmod(path.stat().st_mode | 0o555)
    vm_id = await site.ready()
    shutil.copy(readable, site.directory(vm_id) / "jail" / "own")
    (site.directory(vm_id) / "jail" / "own").chmod(0o666)
    async with await Api.connect(str(site.directory(vm_id) / "api")) as api:
        disk = {"readonly": True, "image_type": "Raw"}
        assert await api.put("vm.add-disk", {"path": "own", **disk})
        with pytest.raises(ApiError, match="Permission denied"):
            await api.put("vm.add-disk", {"path": str(readable), **disk})


async def test_a_vm_whose_confinement_is_not_proven_does_not_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = Confinement.prefix
    monkeypatch.setattr(Confinement, "prefix", lambda me: [word for word in prefix(me) if word != "--no-new-privs"])
    monkeypatch.setattr("node_agent.drivers.cloud_hypervisor.confine.FILTERING_SECONDS", 0.5)
    with pytest.raises(CloneFailed, match="NoNewPrivs is 0, not 1"):
        await site.driver.make().clone(site.template, MACHINE, site.directory(site.reserve()))
    assert site.processes() == []
    directory = site.directory(site.reserve())
    vm = await CloudHypervisorVmm(Settings(allow_unconfined=True)).clone(site.template, MACHINE, directory)
    await vm.destroy()


# -- leaks -------------------------------------------------------------------------------------------------------------


async def test_many_clones_in_a_row_leave_nothing(site: Site) -> None:
    before, template = what_is_there(site), digest(site.template)
    for _ in range(IN_A_ROW):
        vm_id = await site.clone()
        await site.vms.pop(vm_id).destroy()
        shutil.rmtree(site.directory(vm_id))
    assert what_is_there(site) == before and digest(site.template) == template


def what_is_there(site: Site) -> dict[str, list[str]]:
    """That a clone could leave behind."""
    return {
        "descriptors": sorted(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "processes": site.processes(),
        "files": sorted(map(str, site.base.rglob("*"))),
        "cgroups": sorted(map(str, Path("/sys/fs/cgroup").rglob("*-*"))),
    }


def status(path: Path) -> dict[str, list[str]]:
    """Of a file in /proc with a name per line."""
    return {name: value.split() for name, _, value in (line.partition(":") for line in path.read_text().splitlines())}
