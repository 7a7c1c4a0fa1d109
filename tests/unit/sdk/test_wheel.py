"""The wheel installs into a fresh environment, and what a user tries first works there."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """To its end."""
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tree."""
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(out))
    done = run(sys.executable, "-m", "pip", "wheel", ROOT, *options, cwd=out)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("sandpool-*.whl")
    return made


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel; what it depends on is borrowed from ours, behind its own."""
    directory = tmp_path_factory.mktemp("fresh")
    venv.create(directory)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python")]
    done = run(*pip, "install", "--no-deps", "--no-index", "-q", wheel, cwd=directory)
    assert done.returncode == 0, done.stderr
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory


def test_it_has_every_package_its_types_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {
        "sandpool",
        "service_kit",
        "scheduler",
        "pool_manager",
        "node_agent",
        "guest_agent",
        "sandpool_image",
    }
    assert {"sandpool/py.typed", "sandpool/v1/event_pb2.pyi", "sandpool_image/init.sh"} <= set(names)


def test_import_version_and_doctor_work(fresh: Path) -> None:
    source = "import sandpool; print(sandpool.__file__); sandpool.Client, sandpool.AsyncClient, sandpool.SessionEnded"
    imported = run(fresh / "bin" / "python", "-W", "error", "-c", source, cwd=fresh)
    assert imported.returncode == 0 and imported.stdout.startswith(str(fresh)), imported.stderr
    said = run(fresh / "bin" / "sandpool", "--version", cwd=fresh)
    assert said.stdout == f"sandpool, version {version('sandpool')}\n"
    doctor = run(fresh / "bin" / "sandpool", "doctor", "--json", cwd=fresh)
    findings = [json.loads(line) for line in doctor.stdout.splitlines()]
    assert "python" in {finding["name"] for finding in findings} and doctor.returncode in (0, 1)
    for name in ("scheduler", "pool-manager", "node-agent", "tunnel", "image"):
        helped = run(fresh / "bin" / f"sandpool-{name}", "--help", cwd=fresh)
        assert helped.returncode == 0, helped.stderr
