"""What a VMM may do is read back; every way in which it may do more has a name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.drivers.cloud_hypervisor import confine
from node_agent.drivers.cloud_hypervisor.confine import Confinement, UidRange, Unconfined, thread_problems
from node_agent.vmm import MachineSpec

CONFINED = Confinement(1_900_000_001, 1_900_000_001, (104,), is_own=True)
ORDINARY = Confinement(1000, 1000, (1000, 104), is_own=False)
NONE, ALL = "0000000000000000", "000001ffffffffff"
STATUS = f"""Name:\tvcpu0
Pid:\t70
Uid:\t1900000001\t1900000001\t1900000001\t1900000001
Gid:\t1900000001\t1900000001\t1900000001\t1900000001
Groups:\t104\x20
CapInh:\t{NONE}
CapPrm:\t{NONE}
CapEff:\t{NONE}
CapBnd:\t{NONE}
CapAmb:\t{NONE}
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t1
"""


def found(status: str, confinement: Confinement = CONFINED, *, is_main: bool = False) -> list[str]:
    return list(thread_problems(status, confinement, is_main=is_main))


def test_a_confined_thread_has_no_problem() -> None:
    assert found(STATUS) == []
    assert found(STATUS.replace("Groups:\t104 ", "Groups:\t")) == []


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs is 0, not 1"),
        ("Seccomp:\t2", "Seccomp:\t0", "Seccomp is 0, not 2"),
        (f"CapBnd:\t{NONE}", f"CapBnd:\t{ALL}", f"CapBnd is {ALL}, not {NONE}"),
        (f"CapEff:\t{NONE}", "CapEff:\t0000000000000001", f"CapEff is 0000000000000001, not {NONE}"),
        (f"CapPrm:\t{NONE}", f"CapPrm:\t{ALL}", f"CapPrm is {ALL}, not {NONE}"),
        (f"CapInh:\t{NONE}", f"CapInh:\t{ALL}", f"CapInh is {ALL}, not {NONE}"),
        (f"CapAmb:\t{NONE}", f"CapAmb:\t{ALL}", f"CapAmb is {ALL}, not {NONE}"),
        ("Groups:\t104 ", "Groups:\t0 104 ", "Groups are 0 104"),
        ("Uid:\t1900000001", "Uid:\t0", "Uid is 0 1900000001 1900000001 1900000001, not"),
        ("Gid:\t1900000001\t1900000001", "Gid:\t1900000001\t0", "Gid is 1900000001 0"),
        ("NoNewPrivs:\t1\n", "", "NoNewPrivs is missing"),
    ],
)
def test_whatever_a_thread_may_do_more_is_said(right: str, wrong: str, problem: str) -> None:
    assert right in STATUS
    problems = found(STATUS.replace(right, wrong, 1))
    assert len(problems) == 1 and problems[0].startswith(problem)


def test_the_main_thread_has_no_filter_but_all_the_rest() -> None:
    unfiltered = STATUS.replace("Seccomp:\t2", "Seccomp:\t0")
    assert found(unfiltered, is_main=True) == []
    assert found(unfiltered.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0"), is_main=True) != []


def test_an_ordinary_users_vmm_keeps_the_users_groups_and_a_bounding_set_that_is_of_no_use() -> None:
    status = STATUS.replace("1900000001", "1000").replace(f"CapBnd:\t{NONE}", f"CapBnd:\t{ALL}")
    assert found(status.replace("Groups:\t104", "Groups:\t104 1000"), ORDINARY) == []
    assert found(status.replace("Groups:\t104", "Groups:\t104 27"), ORDINARY) == ["Groups are 104 27"]
    assert found(status, replace(ORDINARY, is_own=True)) == [f"CapBnd is {ALL}, not {NONE}"]


@pytest.fixture
def sleeper() -> Iterator[int]:
    """An ordinary process of ours."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


async def test_a_process_that_is_not_confined_is_not_taken_for_one(
    sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "FILTERING_SECONDS", 0.0)
    mine = Confinement(os.getuid(), os.getgid(), tuple(os.getgroups()), is_own=False)
    with pytest.raises(Unconfined, match="NoNewPrivs is 0"):
        await confine.prove(sleeper, mine, None)
    with pytest.raises(Unconfined, match="cannot be read"):
        await confine.prove(2**22 + 1, mine, None)


def test_what_setpriv_does_is_what_is_read_back() -> None:
    mine = Confinement(os.getuid(), os.getgid(), tuple(os.getgroups()), is_own=False)
    command = [*mine.prefix(), sys.executable, "-c", "print('on', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        problems = list(confine.problems(process.pid, mine, None))
        elsewhere = list(confine.problems(process.pid, mine, "/sandpool/v1"))
        confine.limit(process.pid, MachineSpec(1, 1 << 30, 2 << 30))
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        process.communicate("\n")
    assert [problem.partition(": ")[2] for problem in problems] == ([] if os.getuid() else KEPT_BY_ROOT)
    assert elsewhere[-1].endswith("it is not in /sandpool/v1")
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert rows["Max core file size"] == ["0", "0"]
    assert rows["Max file size"] == [str((2 << 30) + (64 << 20))] * 2


FULL = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
# Without a user of its own, root's process is root's.
KEPT_BY_ROOT = [f"CapPrm is {FULL}, not {NONE}", f"CapEff is {FULL}, not {NONE}"]


def test_every_vm_has_a_user_of_its_own(tmp_path: Path) -> None:
    mine = os.getuid()
    pool = UidRange(mine - 1, 4)
    assert pool.of_builders() == mine - 1 and mine + 2 in pool and mine + 3 not in pool
    assert pool.free(tmp_path) == mine
    (tmp_path / "one" / "jail").mkdir(parents=True)
    assert pool.free(tmp_path) == mine + 1
    with pytest.raises(Unconfined, match="every user id"):
        UidRange(mine - 1, 2).free(tmp_path)


def device(mode: int, gid: int) -> os.stat_result:
    return os.stat_result((0o020000 | mode, 0, 0, 1, 0, gid, 0, 0, 0, 0))


def test_the_groups_are_what_the_device_takes() -> None:
    assert confine._device_groups(device(0o666, 0)) == ()
    assert confine._device_groups(device(0o660, 104)) == (104,)
    for refused in (device(0o600, 104), device(0o660, 0), device(0o640, 104)):
        with pytest.raises(Unconfined, match="group kvm"):
            confine._device_groups(refused)
