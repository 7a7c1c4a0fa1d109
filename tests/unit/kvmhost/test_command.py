"""Command lines: QEMU's, SSH's, and what joins a node."""

import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from sandpool_kvmhost.__main__ import _split
from sandpool_kvmhost.command import HostSpec, arguments
from sandpool_kvmhost.image import HostImage
from sandpool_kvmhost.join import Joining
from sandpool_kvmhost.ssh import Way


def test_the_host_has_nested_paging_and_one_way_in() -> None:
    line = arguments(HostSpec(cpus=3, memory_mb=2048, idle_minutes=7), Path("/images/a,b"), 4711)
    assert line[line.index("-cpu") + 1] == "max,+svm,+npt"
    assert (line[line.index("-smp") + 1], line[line.index("-m") + 1]) == ("3", "2048M")
    (network,) = (word for word in line if word.startswith("user,"))
    assert network == "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:4711-10.0.2.15:22"
    assert any(word.startswith("file=/images/a,,b/root.erofs,") and word.endswith("readonly=on") for word in line)
    assert line[line.index("-append") + 1].endswith(" kvmhost.idle_minutes=7")


@pytest.mark.parametrize("wrong", [{"cpus": 0}, {"memory_mb": 512}, {"idle_minutes": 0}])
def test_a_host_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="the host needs"):
        HostSpec(**wrong)


def test_words_arrive_as_they_are() -> None:
    words = ["sh", "-c", "echo \"$0\" 'a b' $(x) *", "--", "", "a\nb"]
    command = Way(HostImage(Path("/c")), 1, Path("/d")).command(words, ["-tt"])
    assert command[-3:-1] == ["-tt", "kvmhost"]
    # The far side's shell is what takes it apart.
    shown = subprocess.check_output(["sh", "-c", f"printf '%s\\0' {command[-1]}"], text=True)
    assert shown.split("\0")[:-1] == words == shlex.split(command[-1])


def test_only_that_host_is_trusted_with_only_that_key() -> None:
    command = Way(HostImage(Path("/c d%")), 4711, Path("/r")).command(["true"])
    assert {"StrictHostKeyChecking=yes", "HostKeyAlias=kvmhost", "HostName=127.0.0.1", "Port=4711"} <= set(command)
    assert 'IdentityFile="/c d%%/key"' in command and 'UserKnownHostsFile="/c d%%/known_hosts"' in command


@pytest.mark.parametrize(
    ("words", "ours", "inside"),
    [
        (["run", "--", "a", "--", "b"], ["run"], ["a", "--", "b"]),
        (["up"], ["up"], []),
        (["test", "--tree", "x", "--", "-x"], ["test", "--tree", "x"], ["-x"]),
    ],
)
def test_what_comes_after_two_dashes_is_for_inside(words: list[str], ours: list[str], inside: list[str]) -> None:
    assert _split(words) == (ours, inside)


def test_a_node_joins_over_loopback_alone() -> None:
    joining = Joining(Path("/state/pool-manager.sock"), 1001, 1002, "ab")
    forwards = joining.forwards()
    assert forwards[forwards.index("-R") + 1] == "/run/pool-manager-ab.sock:/state/pool-manager.sock"
    settings = tomllib.loads(joining.config("qemu"))
    assert settings["pool_manager"] == "unix:/run/pool-manager-ab.sock"
    for address in (*settings["listen"], settings["tunnel_listen"]):
        assert f"{address}:{address}" in forwards and address.startswith("127.0.0.1:")
    assert (settings["destroy_on_exit"], settings["driver"]) == (True, "qemu")
