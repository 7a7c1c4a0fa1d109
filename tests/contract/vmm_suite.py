"""What every driver of the Vmm protocol does. A module that imports all of this gives the fixture whole_run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from node_agent.drivers.process import PROCESS_FILE, recorded_pid
from node_agent.vmm import GUEST_ADDRESS_FILE, CloneFailed, GuestAddress

from .connections import CuttingRelay, half_a_frame
from .conversation import say, until_it_says
from .site import MACHINE, Site, digest
from .uniqueness_suite import test_no_two_clones_are_alike as test_no_two_clones_are_alike

STREAM_BYTES = 3_000_000
MANY = 8
# More than one connection uses, less than a guest can have at once.
SEVERAL = 4


@pytest_asyncio.fixture
async def site(whole_run: Site) -> AsyncIterator[Site]:
    """For one test; whatever it has cloned is destroyed."""
    yield whole_run
    await whole_run.clean()


# -- template ----------------------------------------------------------------------------------------------------------


async def test_what_the_host_can_do_is_said_with_a_reason(site: Site) -> None:
    acceleration = await site.driver.make().probe()
    assert acceleration.name in ("kvm", "emulation", "none")
    assert acceleration.detail


async def test_two_driver_objects_have_one_fingerprint(site: Site) -> None:
    assert await site.driver.make().fingerprint() == await site.driver.make().fingerprint()


async def test_a_build_that_cannot_be_quiesced_leaves_nothing_running(site: Site, tmp_path: Path) -> None:
    async def refuse(_address: GuestAddress) -> None:
        raise CloneFailed("the guest is not well")

    with pytest.raises(CloneFailed, match="the guest is not well"):
        await site.driver.make().build(site.driver.image, MACHINE, tmp_path, refuse)
    assert [line for line in site.processes() if str(tmp_path) in line] == []


async def test_clones_leave_their_template_alone(site: Site) -> None:
    before = digest(site.template)
    vm_id = await site.ready()
    async with site.guest(vm_id) as guest:
        assert (await guest.code("data = bytearray(b'x' * 50_000_000)")).error is None
        await guest.shell("head -c 20000000 /dev/urandom > f; sync")
    await site.vms[vm_id].destroy()
    assert digest(site.template) == before


async def test_a_clone_of_a_broken_template_fails_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    for number, (name, damage) in enumerate(site.driver.damages.items()):
        broken = tmp_path / str(number)
        copy = ["-r", "--sparse=always", "--reflink=auto", "--no-preserve=mode", str(site.template), str(broken)]
        assert await (await asyncio.create_subprocess_exec("cp", *copy)).wait() == 0
        damage(broken)
        directory = site.directory(site.reserve())
        with pytest.raises(CloneFailed):
            await site.driver.make().clone(broken, MACHINE, directory)
        assert site.processes() == [], name
        assert not (directory / GUEST_ADDRESS_FILE).exists(), name
        shutil.rmtree(broken)


# -- clone -------------------------------------------------------------------------------------------------------------


async def test_a_clone_executes_and_keeps_state(site: Site) -> None:
    vm_id = await site.ready()
    async with site.guest(vm_id) as guest:
        await guest.code("x = 20")
        assert (await guest.code("print(x + 22)")).stdout == b"42\n"
        outcome = await guest.shell("echo out; echo err >&2; exit 3")
        assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")
        assert outcome.ended is not None and outcome.ended.exit_code == 3


async def test_its_files_are_all_in_its_directory(site: Site) -> None:
    vm_id = await site.clone()
    address = GuestAddress.from_json((site.directory(vm_id) / GUEST_ADDRESS_FILE).read_text())
    assert address == site.vms[vm_id].address
    assert all(Path(path).is_relative_to(site.directory(vm_id)) for path in address.paths)
    assert recorded_pid(site.directory(vm_id)) is not None


async def test_a_path_too_long_for_sockets_is_a_clear_failure(site: Site) -> None:
    directory = site.directory(site.reserve()) / ("long" * 30)
    directory.mkdir()
    with pytest.raises(CloneFailed, match="too long"):
        await site.driver.make().clone(site.template, MACHINE, directory)


async def test_two_clones_share_no_randomness_and_no_names(site: Site) -> None:
    one, other = await asyncio.gather(site.clone(), site.clone())
    answers = await asyncio.gather(site.prepare(one), site.prepare(other))
    assert len({answer.random_sample for answer in answers}) == 2
    assert len({answer.worker_samples["python"] for answer in answers}) == 2
    everything = "import os, random, uuid; print(random.random(), os.urandom(8).hex(), uuid.uuid4())"
    seen = [await say(site, vm_id, everything) for vm_id in (one, other)]
    assert all(mine != theirs for mine, theirs in zip(*map(bytes.split, seen), strict=True))
    if site.driver.is_vm:
        names = "for name in ('/proc/sys/kernel/random/boot_id', '/etc/machine-id', '/etc/hostname'):"
        seen = [await say(site, vm_id, f"{names} print(open(name).read())") for vm_id in (one, other)]
        assert all(mine != theirs for mine, theirs in zip(*map(bytes.split, seen), strict=True))


async def test_a_file_of_one_clone_is_not_in_another_nor_in_a_later_one(site: Site) -> None:
    one, other = await asyncio.gather(site.ready(), site.ready())
    async with site.guest(one) as guest:
        assert (await guest.shell("echo secret > f; sync; cat f")).stdout == b"secret\n"
    later = await site.ready()
    for vm_id in (other, later):
        async with site.guest(vm_id) as guest:
            assert (await guest.shell("ls")).stdout == b""


async def test_many_clones_at_once(site: Site) -> None:
    vms = await asyncio.gather(*(site.clone() for _ in range(MANY)))
    answers = await asyncio.gather(*(site.prepare(vm_id) for vm_id in vms))
    assert len({answer.random_sample for answer in answers}) == MANY
    said = await asyncio.gather(*(say(site, vm_id, f"print({vm_id!r})") for vm_id in vms))
    assert said == [f"{vm_id}\n".encode() for vm_id in vms]


async def test_a_cancelled_clone_leaves_nothing_running(site: Site) -> None:
    directory = site.directory(site.reserve())
    cloning = asyncio.create_task(site.driver.make().clone(site.template, MACHINE, directory))
    while not (directory / PROCESS_FILE).exists():  # noqa: ASYNC110
        await asyncio.sleep(0)
    cloning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cloning
    assert site.processes() == []


# -- connections -------------------------------------------------------------------------------------------------------


async def test_connections_are_independent(site: Site) -> None:
    vm_id = await site.ready()
    relay = await CuttingRelay.open(site.tunnel, cut_after_bytes=STREAM_BYTES // 3 + 1)
    async with relay, site.guest(vm_id, relay.address) as cut:
        async with asyncio.TaskGroup() as streams:
            others = [streams.create_task(download(site, vm_id)) for _ in range(SEVERAL - 1)]
            with pytest.raises(grpc.aio.AioRpcError):
                await cut.shell(f"head -c {STREAM_BYTES} /dev/zero")
            assert relay.was_cut
        assert [stream.result() for stream in others] == [STREAM_BYTES] * (SEVERAL - 1)


async def test_a_peer_that_breaks_off_in_mid_frame_harms_nobody(site: Site) -> None:
    vm_id = await site.ready()
    async with site.guest(vm_id) as guest:
        for _ in range(2 * SEVERAL):
            await half_a_frame(site.tunnel, vm_id, site.token(vm_id))
            assert (await guest.code("print(1)")).stdout == b"1\n"
    for _ in range(2 * SEVERAL):
        assert await say(site, vm_id, "print(2)") == b"2\n"


# -- end ---------------------------------------------------------------------------------------------------------------


async def test_destroy_ends_everything_and_is_idempotent(site: Site) -> None:
    vm_id = await site.ready()
    vm = site.vms[vm_id]
    waiting = [asyncio.create_task(vm.exited()) for _ in range(2)]
    async with site.guest(vm_id) as guest:
        stream = guest.shell_events("setsid sleep 1000 & echo on; sleep 1000")
        await until_it_says(stream, b"on")
        await asyncio.gather(vm.destroy(), vm.destroy())
        assert site.processes() == []
        with pytest.raises(grpc.aio.AioRpcError):
            await until_it_says(stream, b"off")
    assert all(await asyncio.gather(*waiting))
    await vm.destroy()
    assert site.directory(vm_id).exists()
    assert recorded_pid(site.directory(vm_id)) is None


async def test_the_end_of_a_vm_is_seen_whoever_caused_it(site: Site) -> None:
    vm_id = await site.ready()
    pid = recorded_pid(site.directory(vm_id))
    assert pid is not None
    async with site.guest(vm_id) as guest:
        stream = guest.shell_events("echo on; sleep 1000")
        await until_it_says(stream, b"on")
        os.kill(pid, signal.SIGKILL)
        assert "was killed by signal 9" in await site.vms[vm_id].exited()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await until_it_says(stream, b"off")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# -- recover -----------------------------------------------------------------------------------------------------------


async def test_a_vm_outlives_the_agent_that_cloned_it(site: Site) -> None:
    vm_id = site.reserve()
    directory = site.directory(vm_id)
    crash = [sys.executable, "-m", "tests.contract.crash", site.driver.path, str(site.template), str(directory)]
    crashed = await asyncio.create_subprocess_exec(*crash, cwd=Path(__file__).parents[2])
    assert await crashed.wait() == -signal.SIGKILL
    recovered = await site.driver.make().recover(directory)
    assert recovered is not None
    site.vms[vm_id] = recovered
    await site.prepare(vm_id)
    await say(site, vm_id, "x = 1")
    again = await site.driver.make().recover(directory)
    assert again is not None and again.address == recovered.address
    assert await say(site, vm_id, "print(x)") == b"1\n"
    await recovered.destroy()
    assert await again.exited()
    assert await site.driver.make().recover(directory) is None


async def test_only_what_is_provably_ours_is_recovered(site: Site) -> None:
    for other in ("", "{}", '{"pid": 1}', json.dumps({"pid": os.getpid(), "start_time": "1"}), None):
        vm_id = await site.clone()
        directory, record = site.directory(vm_id), site.directory(vm_id) / PROCESS_FILE
        assert await site.driver.make().recover(directory) is not None
        record.unlink()
        if other is not None:
            record.write_text(other)
        # A driver that finds what it has started in another way may end it.
        assert await site.driver.make().recover(directory) is None
        await site.vms[vm_id].destroy()


async def test_an_unfinished_clone_is_killed_and_not_recovered(site: Site) -> None:
    vm_id = await site.clone()
    (site.directory(vm_id) / GUEST_ADDRESS_FILE).unlink()
    assert await site.driver.make().recover(site.directory(vm_id)) is None
    assert site.processes() == []
    assert await site.vms[vm_id].exited()


# -- helpers -----------------------------------------------------------------------------------------------------------


async def download(site: Site, vm_id: str) -> int:
    """Bytes received of a stream."""
    async with site.guest(vm_id) as guest:
        outcome = await guest.shell(f"head -c {STREAM_BYTES} /dev/zero")
        assert outcome.stdout.count(0) == len(outcome.stdout)
        return len(outcome.stdout)
