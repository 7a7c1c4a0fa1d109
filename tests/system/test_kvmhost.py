"""The emulated KVM host, really booted: what it promises to the commands in it. Runs by `make kvmhost-test` only."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpool_kvmhost.command import HostSpec
from sandpool_kvmhost.fill import INSIDE, send_binary, send_tree
from sandpool_kvmhost.host import Place, Running
from sandpool_kvmhost.image import build
from sandpool_kvmhost.inputs import project
from sandpool_kvmhost.process import is_alive, kill
from sandpool_kvmhost.qmp import plugged

pytestmark = [pytest.mark.kvmhost, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


def say(message: str, _: float = 0) -> None:
    print(message, file=sys.stderr)


@pytest.fixture(scope="module")
def host() -> Iterator[Running]:
    """Of its own, whatever else runs: this tree is in it."""
    image = build(Path.home() / ".cache" / "sandpool", project((ROOT / "pyproject.toml").read_text()).requirements, say)
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        place = Place(Path(directory))
        try:
            running = place.boot(HostSpec(memory_mb=2048), image, say)
            send_tree(running, ROOT, say)
            assert place.find() == running
            yield running
            kill(running.identity)  # as in a crash
            assert place.find() is None and not is_alive(running.identity)
        finally:
            place.end()


def run(host: Running, *words: str) -> subprocess.CompletedProcess[str]:
    """As the command does it, to its end."""
    command = host.way.command([INSIDE, "run", str(ROOT), *words])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # and standard input stays open: its end would end the command
        output = process.stdout.read()
        return subprocess.CompletedProcess(words, process.wait(), output)


def test_kvm_works_there(host: Running) -> None:
    """KVM_GET_API_VERSION and KVM_CREATE_VM, by the device that the group kvm may open."""
    program = "import fcntl, os; d = os.open('/dev/kvm', os.O_RDWR)"
    program += "; print(fcntl.ioctl(d, 0xAE00), fcntl.ioctl(d, 0xAE01) > 2)"
    assert run(host, "python", "-c", program).stdout == "12 True\n"
    assert run(host, "stat", "-c", "%a %G", "/dev/kvm").stdout == "660 kvm\n"
    assert run(host, "cat", "/sys/module/kvm_amd/parameters/npt").stdout in ("Y\n", "1\n")


def test_a_command_runs_in_the_tree_with_its_packages(host: Running) -> None:
    assert run(host, "pwd").stdout == f"{ROOT}\n"
    program = "import node_agent, grpc, pytest; print(node_agent.__file__)"
    assert run(host, "python", "-c", program).stdout.startswith(f"{ROOT}/services/node-agent/")
    assert "passed" in run(host, ".venv/bin/pytest", "tests/unit/image/test_inputs.py").stdout


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)])
def test_its_exit_code_is_ours(host: Running, command: str, status: int) -> None:
    assert run(host, "sh", "-c", command).returncode == status


def test_what_a_command_leaves_is_killed_with_it(host: Running) -> None:
    left = run(host, "sh", "-c", "setsid sleep 1234 >/dev/null 2>&1 & echo $!").stdout.strip()
    assert left.isdigit()
    assert run(host, "test", "-e", f"/proc/{left}").returncode == 1
    groups = run(host, "find", "/sys/fs/cgroup/runs", "-mindepth", "1", "-type", "d").stdout.split()
    assert len(groups) == 1  # that of find


def test_the_end_of_its_input_interrupts_a_command(host: Running) -> None:
    program = (
        "import signal\nprint('go', flush=True)\ntry: signal.pause()\nexcept KeyboardInterrupt: print('cleaned up')"
    )
    command = host.way.command([INSIDE, "run", str(ROOT), "python", "-c", program])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "go\n"
        process.stdin.close()
        assert process.stdout.read() == "cleaned up\n"
        assert process.wait() == 0


def test_only_what_has_changed_is_sent(host: Running, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "a").write_text("1")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    said: list[str] = []
    send_tree(host, tmp_path, said.append)
    send_tree(host, tmp_path, said.append)
    (tmp_path / "a").rename(tmp_path / "b")
    send_tree(host, tmp_path, said.append)
    assert said == [f"sending {count} files of {tmp_path}" for count in (2, 1)]
    assert run(host, "sh", "-c", f"cd {tmp_path}; ls; cat b").stdout == "b\npyproject.toml\n1"


def test_a_binary_is_in_its_path(host: Running, tmp_path: Path) -> None:
    binary = tmp_path / "vmm"
    for answer in ("first", "second"):
        binary.write_text(f"#!/bin/sh\necho {answer}\n")
        send_binary(host, binary, say)
        assert run(host, "cloud-hypervisor").stdout == f"{answer}\n"


def test_a_file_is_copied_through_a_disk(host: Running, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(range(256)) * 5000 + b"end")  # no whole number of sectors
    for serial in ("first", "second"):
        with plugged(host.monitor, file, serial):
            size = str(file.stat().st_size)
            assert run(host, INSIDE, "fetch", serial, size, f"/tmp/{serial}").returncode == 0
    digest = subprocess.check_output(["sha256sum", str(file)], text=True).split()[0]
    assert run(host, "sha256sum", "/tmp/first", "/tmp/second").stdout.split()[::2] == [digest, digest]


NO_WAY_OUT = """
import socket, sys
try:
    socket.create_connection(("10.0.2.2", int(sys.argv[1])), 3)
except OSError:
    print("no way")
"""


def test_there_is_no_way_out(host: Running) -> None:
    """Not even to this machine's loopback, which user networks call 10.0.2.2."""
    with socket.create_server(("127.0.0.1", 0)) as open_port:
        port = str(open_port.getsockname()[1])
        assert run(host, "python", "-c", NO_WAY_OUT, port).stdout == "no way\n"
