"""A process is found again only if it is still the same, and a host only if its process is."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sandpool_kvmhost.command import HostSpec
from sandpool_kvmhost.host import HostFailed, Place
from sandpool_kvmhost.image import HostImage
from sandpool_kvmhost.process import StartFailed, identify, is_alive, kill, start

# As QEMU does: it detaches itself, and leaves its id.
DETACHED = ["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >pid"]


def qemu(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A QEMU that is a shell script."""
    program = directory / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin:/usr/sbin:/sbin")


def test_it_outlives_nobody_who_kills_it(tmp_path: Path) -> None:
    identity = start(DETACHED, tmp_path)
    assert is_alive(identity) and not is_alive(replace(identity, started=identity.started + 1))
    kill(replace(identity, started=identity.started + 1))  # another one of that number
    assert is_alive(identity)
    kill(identity)
    assert not is_alive(identity)
    kill(identity)


def test_the_dead_are_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        while identify(process.pid) is not None:
            continue
        assert identify(process.pid) is None  # not yet waited for


def test_a_host_is_there_as_long_as_its_process(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.find() is None and not place.end()
    place.directory.mkdir(parents=True)
    (place.directory / "host.json").write_text("{")
    assert place.find() is None
    identity = start(DETACHED, tmp_path)
    kept = {"identity": asdict(identity), "image": "/image", "port": 4711}
    (place.directory / "host.json").write_text(json.dumps(kept))
    found = place.find()
    assert found is not None and (found.identity, found.port) == (identity, 4711)
    assert place.end() and not is_alive(identity)
    assert place.find() is None and not place.directory.exists()


def test_a_program_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="no such machine"):
        start(["sh", "-c", "echo no such machine >&2; exit 1"], tmp_path)
    with pytest.raises(StartFailed, match="No such file"):
        start(["/no/program"], tmp_path)


def test_a_host_that_does_not_boot_shows_its_logs_and_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu(tmp_path, monkeypatch, "echo 'Kernel panic' >console; sleep 0.3 >/dev/null 2>&1 & echo $! >pid")
    place = Place(tmp_path)
    with place.locked(), pytest.raises(HostFailed, match=r"(?s)did not boot.*Kernel panic"):
        place.boot(HostSpec(), HostImage(tmp_path), lambda _: None)
    assert place.find() is None


def test_what_the_console_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = r"SeaBIOS..kvmhost: loading kvm_amd\r\n[ 1.0] noise\nkvmhost: no /dev/kvm\n"
    qemu(tmp_path, monkeypatch, f"printf '{lines}' >console; sleep 0.3 >/dev/null 2>&1 & echo $! >pid")
    said: list[str] = []
    with pytest.raises(HostFailed):
        Place(tmp_path).boot(HostSpec(), HostImage(tmp_path), said.append)
    assert said == ["loading kvm_amd", "no /dev/kvm"]


def test_an_interrupted_boot_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu(tmp_path, monkeypatch, "echo 'kvmhost: go' >console; sleep 1000 >/dev/null 2>&1 & echo $! >pid")

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    place = Place(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        place.boot(HostSpec(), HostImage(tmp_path), interrupt)
    assert identify(int((place.directory / "pid").read_text())) is None
