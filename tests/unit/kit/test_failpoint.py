"""Places where tests have a process killed: once each, and never by mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from service_kit.failpoint import VARIABLE, Place, UnknownPlace, directory_of

PASSES = "from service_kit import failpoint\nfailpoint.reach(failpoint.Place.VM_CHOSEN)\nprint('passed')"


def run(environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PASSES], env=environment, stdout=subprocess.PIPE, text=True, timeout=60
    )
    return done.returncode, done.stdout


def test_an_armed_place_kills_the_first_that_reaches_it_and_nobody_else(tmp_path: Path) -> None:
    environment = {VARIABLE: str(tmp_path)}
    (tmp_path / Place.VM_SPAWNED).touch()
    assert run(environment) == (0, "passed\n")
    (tmp_path / Place.VM_CHOSEN).touch()
    assert run(environment) == (-9, "")
    assert run(environment) == (0, "passed\n")
    assert [path.name for path in tmp_path.iterdir()] == [Place.VM_SPAWNED]


def test_without_the_variable_nothing_is_armed() -> None:
    assert directory_of({}) is None and run({}) == (0, "passed\n")


def test_what_names_no_place_fails_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "pool-manager.vm-choosen").touch()
    with pytest.raises(UnknownPlace, match="vm-choosen"):
        directory_of({VARIABLE: str(tmp_path)})
    with pytest.raises(UnknownPlace, match="no directory"):
        directory_of({VARIABLE: str(tmp_path / "nothing")})
    assert run({VARIABLE: str(tmp_path)})[0] == 1
