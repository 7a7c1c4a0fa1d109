"""The content address of the emulated host moves with what goes into it, and with nothing else."""

import tomllib
from pathlib import Path

import pytest

from sandpool_kvmhost.image import wanted
from sandpool_kvmhost.inputs import LEFT_OUT, BadProject, host_id, project

OURS = (Path(__file__).parents[3] / "pyproject.toml").read_text()
SMALL = """
[project]
name = "thing"
version = "1"
dependencies = ["b>=1", "a[x]>=2"]
[project.optional-dependencies]
dev = ["mypy==2", "pytest>=8", "Ruff"]
[tool.hatch.build]
dev-mode-dirs = ["src", "more"]
"""


def test_a_project_is_what_running_it_takes() -> None:
    found = project(SMALL)
    assert (found.name, found.version, found.paths) == ("thing", "1", ("src", "more"))
    assert found.requirements == ("a[x]>=2", "b>=1", "pytest>=8")


def test_our_own() -> None:
    found = project(OURS)
    assert "deploy/kvmhost" in found.paths and any(each.startswith("pytest>=") for each in found.requirements)
    # A name that is no longer there would be left out for nothing.
    dev = tomllib.loads(OURS)["project"]["optional-dependencies"]["dev"]
    assert all(any(each.startswith(name) for each in dev) for name in LEFT_OUT)


@pytest.mark.parametrize("damage", ["dependencies", "dev", "dev-mode-dirs", "name"])
def test_what_is_missing_is_named(damage: str) -> None:
    with pytest.raises(BadProject, match=f"'{damage}'"):
        project(SMALL.replace(f"\n{damage} =", f"\n{damage}-gone ="))
    with pytest.raises(BadProject):
        project("no toml")


def test_the_address_moves_with_packages_and_files(tmp_path: Path) -> None:
    base = host_id(["a"], {"x": b"1", "y": b"2"})
    assert base == host_id(["a"], {"y": b"2", "x": b"1"})
    assert len({base, host_id(["b"], {"x": b"1", "y": b"2"}), host_id(["a"], {"x": b"2", "y": b"2"})}) == 3
    assert wanted(tmp_path, ["a"]) == wanted(tmp_path, ["a"]) != wanted(tmp_path, ["b"])
