"""What every driver of VMs does with one that hibernates. A module that imports this gives the fixture site."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from node_agent.drivers.process import recorded_pid
from node_agent.vmm import GUEST_ADDRESS_FILE, CloneFailed
from sandpool.v1 import execution_pb2 as pb

from ..unit.guest_agent.conftest import gather
from .conversation import say, shell, until_it_says
from .site import Site, digest
from .uniqueness_suite import assert_unlike, fingerprint

FORKS = 4
DAYS_LATER = 3 * 86_400.0
BEATS = "n=0; while :; do n=$((n + 1)); echo $n > beat; sleep 0.02; done"
NEXT_BEAT = 'last=$(cat beat); while [ "$(cat beat)" = "$last" ]; do sleep 0.02; done'
CELL_UNDER_WAY = """
import os, random, time
print("on", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
print(random.random())
"""


@pytest.fixture
def bundle(site: Site) -> Iterator[Path]:
    """Where a VM may hibernate to; and others beside it."""
    bundles = site.base / "bundles"
    bundles.mkdir()
    yield bundles / "first"


async def test_a_vm_that_hibernates_is_gone_and_comes_back_with_all_it_had(site: Site, bundle: Path) -> None:
    vm_id = await site.ready()
    await say(site, vm_id, "x = 20; import threading; lock = threading.Lock()")
    await shell(site, vm_id, "echo unsynced > f; mkdir -p d; echo deep > d/g")
    beats = pb.ExecuteRequest(command=pb.Command(shell=BEATS), background=True, execution_id="beats")
    async with site.guest(vm_id) as guest:
        assert (await anext(aiter(guest.executions.Execute(beats)))).started.execution_id == "beats"
        await guest.shell("while [ ! -s beat ]; do sleep 0.02; done")
    vm = site.vms[vm_id]
    await site.hibernate(vm_id, bundle)
    assert await vm.exited()
    assert recorded_pid(site.directory(vm_id)) is None and site.processes() == []
    assert await site.driver.make().recover(site.directory(vm_id)) is None

    again = await site.resume(bundle, vm_id, name=vm_id)
    assert await say(site, again, "print(x + 22, lock.locked())") == b"42 False\n"
    assert await shell(site, again, "cat f d/g; hostname") == f"unsynced\ndeep\n{vm_id}\n".encode()
    await shell(site, again, NEXT_BEAT)
    async with site.guest(again) as guest:
        answer = await guest.executions.Get(pb.GetExecutionRequest(execution_id="beats"))
    assert answer.execution.state == pb.EXECUTION_STATE_RUNNING


async def test_what_runs_and_is_read_goes_on_however_much_later(site: Site, bundle: Path) -> None:
    vm_id = await site.ready()
    waits = pb.ExecuteRequest(command=pb.Command(shell="echo on; read; echo $REPLY"), keep_stdin_open=True)
    waits.execution_id = "waits"
    waits.timeout.FromSeconds(600)
    async with site.guest(vm_id) as guest:
        stream = guest.executions.Execute(waits)
        await until_it_says(stream, b"on")
        await site.hibernate(vm_id, bundle)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await until_it_says(stream, b"off")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    again = await site.clone(bundle)
    await site.prepare(again, vm_id, seconds_ahead=DAYS_LATER)
    async with site.guest(again) as guest:
        await guest.executions.Input(pb.InputRequest(execution_id="waits", data=b"off\n"))
        outcome = await gather(guest.executions.Attach(pb.AttachRequest(execution_id="waits")))
    assert outcome.stdout == b"on\noff\n" and outcome.ended is not None and outcome.ended.exit_code == 0


async def test_forks_have_the_state_but_are_not_alike(site: Site, bundle: Path) -> None:
    vm_id = await site.ready()
    await say(site, vm_id, "x = 20")
    await shell(site, vm_id, "echo mine > f")
    await site.hibernate(vm_id, bundle)
    before = digest(bundle)
    forks = await asyncio.gather(*(site.resume(bundle, vm_id) for _ in range(FORKS)))
    clock = asyncio.Lock()
    assert_unlike(await asyncio.gather(*(fingerprint(site, fork, clock) for fork in forks)))
    for fork in forks:
        assert await say(site, fork, "x += 1; print(x)") == b"21\n"
        assert await shell(site, fork, f"cat f; echo {fork} > f; sync; cat f") == f"mine\n{fork}\n".encode()
        await site.vms[fork].destroy()
    assert digest(bundle) == before


async def test_a_cell_that_was_forked_under_way_draws_other_numbers_in_each(site: Site, bundle: Path) -> None:
    vm_id = await site.ready()
    cell = pb.ExecuteRequest(code=pb.Code(source=CELL_UNDER_WAY), execution_id="cell")
    async with site.guest(vm_id) as guest:
        await until_it_says(guest.executions.Execute(cell), b"on")
    await site.hibernate(vm_id, bundle)
    drawn = set()
    for _ in range(2):
        fork = await site.resume(bundle, vm_id)
        async with site.guest(fork) as guest:
            await guest.shell("touch go")
            outcome = await gather(guest.executions.Attach(pb.AttachRequest(execution_id="cell")))
        assert outcome.error is None, outcome.error
        drawn.add(outcome.stdout)
    assert len(drawn) == 2 and all(said.startswith(b"on\n0.") for said in drawn)


async def test_a_fork_hibernates_again_and_again(site: Site, bundle: Path) -> None:
    vm_id = await site.ready()
    await say(site, vm_id, "seen = ['first']")
    await site.hibernate(vm_id, bundle)
    fork = await site.resume(bundle, vm_id)
    name = fork
    for turn in ("second", "third"):
        await say(site, fork, f"seen.append({turn!r})")
        await site.hibernate(fork, bundle.with_name(turn))
        fork = await site.resume(bundle.with_name(turn), name, name=name)
    assert await say(site, fork, "print(*seen)") == b"first second third\n"


async def test_a_vm_that_was_recovered_hibernates(site: Site, bundle: Path) -> None:
    vm_id = await site.ready()
    await say(site, vm_id, "x = 42")
    recovered = await site.driver.make().recover(site.directory(vm_id))
    assert recovered is not None
    bundle.mkdir()
    await site.driver.make().hibernate(recovered, bundle)
    assert await site.vms[vm_id].exited()
    assert await say(site, await site.resume(bundle, vm_id), "print(x)") == b"42\n"


async def test_a_dead_vm_does_not_hibernate(site: Site, bundle: Path) -> None:
    vm_id = await site.clone()
    pid = recorded_pid(site.directory(vm_id))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await site.vms[vm_id].exited()
    with pytest.raises(CloneFailed):
        await site.hibernate(vm_id, bundle)
    assert site.processes() == []


async def test_a_vm_that_dies_while_it_hibernates_is_a_failure(site: Site, bundle: Path) -> None:
    vm_id = await site.clone()
    pid = recorded_pid(site.directory(vm_id))
    assert pid is not None
    hibernating = await under_way(site, vm_id, bundle)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(CloneFailed):
        await hibernating
    assert site.processes() == []


async def test_a_hibernation_that_is_cancelled_leaves_nothing_running(site: Site, bundle: Path) -> None:
    vm_id = await site.clone()
    hibernating = await under_way(site, vm_id, bundle)
    hibernating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hibernating
    assert site.processes() == []
    assert await site.vms[vm_id].exited()


async def test_what_an_agent_left_that_died_in_a_hibernation_is_killed_and_not_recovered(
    site: Site, bundle: Path
) -> None:
    bundle.mkdir()
    directory = site.directory(site.reserve())
    crash = [sys.executable, "-m", "tests.contract.crash", site.driver.path, site.template, directory, bundle]
    crashed = await asyncio.create_subprocess_exec(*map(str, crash), cwd=Path(__file__).parents[2])
    assert await crashed.wait() == -signal.SIGKILL
    assert not (directory / GUEST_ADDRESS_FILE).exists()
    assert await site.driver.make().recover(directory) is None
    assert site.processes() == []


async def under_way(site: Site, vm_id: str, bundle: Path) -> asyncio.Task[None]:
    """A hibernation that has begun to write."""
    hibernating = asyncio.create_task(site.hibernate(vm_id, bundle))
    while not (bundle.exists() and any(bundle.iterdir())) and not hibernating.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not hibernating.done()
    return hibernating
