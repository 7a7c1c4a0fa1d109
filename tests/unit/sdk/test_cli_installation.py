"""Pools, events, nodes and completion on the command line, against real services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sandpool import Client
from sandpool.cli import exits, up
from sandpool.cli.main import cli
from sandpool.errors import ResourceExhausted, SandpoolError
from sandpool.v1 import file_pb2, pool_pb2

from .cli import SANDPOOL, objects, sandpool, start


def test_a_pool_with_every_setting_from_its_creation_to_its_end(address: str) -> None:
    settings = ["--ready-target", "1", "--max-sessions", "9", "--cooldown", "5m", "--max-lifetime", "2h"]
    settings += ["--vcpus", "2", "--memory", "512M", "--disk", "1G", "--max-processes", "99", "--image", "python"]
    done = sandpool(address, "pool", "create", "whole", *settings, "--background-is-idle", "--wait", "--json")
    (made,) = objects(done)
    spec, resources = made["spec"], made["spec"]["resources"]
    assert (spec["readyTarget"], spec["maxSessions"], spec["cooldown"], spec["maxLifetime"]) == (1, 9, "300s", "7200s")
    assert (resources["vcpus"], resources["memoryBytes"], resources["diskBytes"]) == (2, str(512 << 20), str(1 << 30))
    assert (resources["maxProcesses"], spec["backgroundIsActivity"]) == (99, False)
    assert (made["counts"]["warm"], made["counts"]["assigned"]) == (1, 0)  # zeros are said
    assert b"0 of 1 VMs are warm" in done.stderr or b"BUILDING_TEMPLATE" in done.stderr
    assert objects(sandpool(address, "pool", "get", "whole", "--json"))[0]["spec"] == spec
    shown = sandpool(address, "pool", "get", "whole").stdout.decode()
    assert "cooldown       5m" in shown and "memory         512.0 MiB" in shown and "background     is idle" in shown
    updated = sandpool(address, "pool", "update", "whole", "--memory", "768M", "--wait", "--json")
    (after,) = objects(updated)
    assert (after["generation"], after["counts"]["warm"], after["counts"]["outdated"]) == ("2", 1, 0)
    assert sandpool(address, "run", "--pool", "whole", "-c", "1").returncode == 0
    refused = sandpool(address, "pool", "delete", "whole")
    assert refused.returncode == 70 and b"POOL_IN_USE" in refused.stderr and b"--force" in refused.stderr
    gone = sandpool(address, "pool", "delete", "whole", "--force", "--wait", "--json")
    assert objects(gone) == [{"pool": "whole", "gone": True}]
    assert sandpool(address, "pool", "get", "whole").returncode == 66
    told = objects(sandpool(address, "events", "--pool", "whole", "--json"))
    types = [event["type"].removeprefix("EVENT_TYPE_") for event in told]
    assert types[0] == "POOL_CREATED" and types[-1] == "POOL_REMOVED"
    assert [event["reason"] for event in told if event["type"] == "EVENT_TYPE_SESSION_ENDED"] == ["POOL_DELETED"]


def test_a_wait_that_is_over_says_why(address: str) -> None:
    arguments = ["--image", "nothing", "--ready-target", "1", "--wait", "--wait-timeout", "2s"]
    done = sandpool(address, "pool", "create", "never", *arguments)
    assert done.returncode == 75 and b"UNKNOWN_IMAGE" in done.stderr and b"not ready after 2s" in done.stderr
    assert sandpool(address, "pool", "delete", "never").returncode == 0


def test_events_are_told_from_any_point_and_followed(address: str) -> None:
    sandpool(address, "run", "--session", "told", "-c", "1")
    follower = start(address, "events", "--json", "--follow", "--session", "told")
    assert follower.stdout is not None
    began = json.loads(follower.stdout.readline())
    assert (began["type"], began["session"]) == ("EVENT_TYPE_SESSION_BEGAN", "told")
    sandpool(address, "stop", "told")
    ended = json.loads(follower.stdout.readline())
    assert (ended["reason"], ended["epoch"], ended["vmId"]) == ("STOPPED", began["epoch"], began["vmId"])
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=60)
    assert (follower.returncode, errors.strip()) == (130, b"")
    after = objects(sandpool(address, "events", "--json", "--after", began["sequence"], "-n", "1"))
    assert [int(event["sequence"]) for event in after] == [int(began["sequence"]) + 1]
    text = sandpool(address, "events", "-n", "5", "--vm", began["vmId"]).stdout.decode().splitlines()
    assert "SEQUENCE" in text[0] and "VM_ENDED" in text[-1] and "STOPPED" in text[-1]
    assert objects(sandpool(address, "events", "--json", "--node", "nowhere")) == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["pool", "get", "nowhere"], 66, ["POOL_NOT_FOUND", "(name)", "sandpool pool list"]),
        (["run", "--session", "a b", "-c", "1"], 2, ["INVALID_FIELD", "session.identifier"]),
        (["ls", "nobody"], 66, ["SESSION_NOT_FOUND", "sandpool ls --pool"]),
        (["pool", "create", "python", "--ready-target", "999"], 70, ["POOL_EXISTS", "pool update"]),
        (["pool", "create", "x", "--memory", "257M"], 2, ["spec.resources.memory_bytes"]),
        (["--address", "127.0.0.1:1", "pool", "list"], 69, ["UNAVAILABLE", "sandpool up"]),
        (["run", "/bin/ls"], 2, ["no text in UTF-8"]),
        (["cp", "/nowhere", "python/x:"], 70, ["No such file"]),
        (["events", "-n", "-1"], 2, ["--limit"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_errors_say_what_and_where_and_what_to_do(
    address: str, arguments: list[str], status: int, said: list[str]
) -> None:
    done = sandpool(address, *arguments)
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b"") and all(part in text for part in said), text
    assert "Traceback" not in text


def test_an_error_in_json_is_one_object(address: str) -> None:
    done = sandpool(address, "--json", "pool", "get", "nowhere")
    error = json.loads(done.stderr)["error"]
    assert (error["reason"], error["code"], error["field"]) == ("POOL_NOT_FOUND", "NOT_FOUND", "name")
    assert error["message"] and error["remedy"]


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--json", "cp", "/nowhere", "python/x:"], 70, "OS_ERROR"),
        (["--json", "run"], 2, "WRONG_USAGE"),
        (["run", "--timeout", "soon", "--json"], 2, "WRONG_USAGE"),
        (["run", "--nonsense", "--json"], 2, "WRONG_USAGE"),
        (["doctor", "--fix", "--source", "file:///nowhere", "--json"], 1, "FAILED"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_an_error_of_the_command_itself_is_one_object_too(
    address: str, tmp_path: Path, arguments: list[str], status: int, reason: str
) -> None:
    done = sandpool(address, *arguments, env={"HOME": str(tmp_path)})
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["reason"], bool(error["message"])) == (status, reason, True)


def test_the_json_of_a_program_is_its_own(address: str) -> None:
    done = sandpool(address, "exec", "--nonsense", "--", "ls", "--json")
    assert done.returncode == 2 and b"Usage:" in done.stderr


def test_a_wait_that_is_over_is_one_object_after_what_it_said(address: str) -> None:
    waits = ["--wait", "--wait-timeout", "200ms", "--json"]
    created = sandpool(address, "pool", "create", "late", "--image", "nothing", "--ready-target", "1", *waits)
    deleted = sandpool(address, "pool", "delete", "late", "--wait", "--wait-timeout", "0s", "--json")
    for done in (created, deleted):
        assert done.returncode == 75 and json.loads(done.stderr.splitlines()[-1])["error"]["reason"] == "WAIT_TIMEOUT"


@pytest.mark.parametrize(("broken", "make"), [("run", Path.touch), ("pool-manager.toml", Path.mkdir)])
def test_an_up_that_cannot_start_says_so(directory: Path, broken: str, make: Callable[[Path], None]) -> None:
    make(directory / broken)
    arguments = ["up", "--state-dir", directory, "--listen", "127.0.0.1:0", "--driver", "fake"]
    done = sandpool("", *arguments, "--json")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["reason"]) == (1, "CANNOT_START") and broken in error["message"]
    assert sandpool("", *arguments).stderr.decode().split() == error["message"].split()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResourceExhausted("x", reason="NO_CAPACITY", retry_after_seconds=1.5), 75),
        (ResourceExhausted("x", reason="TOO_LARGE"), 70),
        (SandpoolError("x", reason="OTHER"), 70),
    ],
)
def test_a_later_try_is_told_apart(error: SandpoolError, code: int) -> None:
    assert exits.exit_code_of(error) == code
    assert ("1.5 s" in exits.describe(error, False)) == (code == 75)


def test_every_command_has_json_and_help() -> None:
    paths = list(_commands((), cli))
    for path in paths:
        text = CliRunner().invoke(cli, [*path, "--help"], prog_name="sandpool").output
        assert text.startswith(f"Usage: {' '.join(('sandpool', *path))} ") and "--json" in text, path
    assert len(paths) >= 17


def _commands(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _commands((*path, name), below)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_the_shell_takes(address: str, shell: str, tmp_path: Path) -> None:
    script = sandpool(address, "completion", shell).stdout
    assert b"_SANDPOOL_COMPLETE" in script
    (as_json,) = objects(sandpool(address, "completion", shell, "--json"))
    assert as_json["script"].strip().encode() == script.strip()
    if shell == "bash":
        (tmp_path / "s").write_bytes(script)
        assert subprocess.run(["bash", "-n", str(tmp_path / "s")], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [("sandpool ev", "events"), ("sandpool pool get py", "python"), ("sandpool pool create x --re", "--ready-target")],
)
def test_completion_knows_commands_options_and_pools(address: str, words: str, expected: str) -> None:
    entry = "import sys; sys.argv[0] = 'sandpool'; from sandpool.cli.main import main; main()"
    environment = {
        **os.environ,
        "SANDPOOL_ADDRESS": address,
        "_SANDPOOL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run([sys.executable, "-c", entry], capture_output=True, env=environment, check=False, text=True)
    assert expected in done.stdout, done.stderr


def test_a_reader_that_goes_away_is_no_error(address: str) -> None:
    for arguments in (["pool", "list"], ["events", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as output:
            done = subprocess.run(
                [*SANDPOOL, "--address", address, *arguments], stdout=output, stderr=subprocess.PIPE, check=False
            )
        assert (done.returncode, done.stderr) == (141, b"")


def test_a_bug_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import sys; sys.argv[0] = 'sandpool'\n"
        "import sandpool.cli.doctor as doctor\n"
        "doctor.examine = lambda: 1 / 0\n"
        "from sandpool.cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", source, "doctor"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 70 and done.stderr.startswith("sandpool: this is a bug: ZeroDivisionError")
    assert len(done.stderr.splitlines()) == 1
    done = subprocess.run([*command, "--json"], capture_output=True, check=False, text=True)
    assert done.returncode == 70 and json.loads(done.stderr)["error"]["reason"] == "BUG"


def test_a_bar_is_drawn_on_a_terminal_only(address: str, tmp_path: Path) -> None:
    local = tmp_path / "big"
    local.write_bytes(bytes(3 << 20))
    for arguments in (["cp", str(local), "bar:big"], ["cp", "bar:big", str(tmp_path / "back")]):
        assert sandpool(address, *arguments).stderr == b""
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [*SANDPOOL, "--address", address, *arguments],
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        drawn = b""
        try:
            while data := os.read(ours, 65536):
                drawn += data
        except OSError:  # the terminal is gone with the process
            pass
        os.close(ours)
        assert process.wait() == 0 and b"MB" in drawn


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--pool", "mine", "alice:d"], ("mine", "alice", "d")),
        (["--pool", "mine", "gpu/alice"], ("gpu", "alice", "")),
        (["alice:"], ("python", "alice", "")),
    ],
)
def test_files_are_listed_of_the_pool_that_was_named(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], asked: tuple[str, str, str]
) -> None:
    seen: list[tuple[str, str, str]] = []

    class Stub(contextlib.AbstractAsyncContextManager["Stub", None]):
        def __init__(self, _address: str | None) -> None:
            self.files = self

        async def __aexit__(self, *_: object) -> None:
            pass

        def session(self, pool: str, identifier: str) -> Stub:
            self.name = (pool, identifier)
            return self

        async def list(self, path: str, recursive: bool) -> AsyncIterator[file_pb2.FileInfo]:
            seen.append((*self.name, path))
            yield file_pb2.FileInfo(path="x")

    monkeypatch.setattr("sandpool.aio.AsyncClient", Stub)
    done = CliRunner().invoke(cli, ["ls", *arguments])
    assert done.exit_code == 0 and seen == [asked], done.output


def test_up_changes_the_ready_target_that_it_is_given_and_no_other(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[up.Options] = []
    monkeypatch.setattr(up, "run", lambda options: given.append(options) or 0)
    for arguments in ([], ["--ready-target", "1"]):
        assert CliRunner().invoke(cli, ["up", *arguments]).exit_code == 0
    assert [options.ready_target for options in given] == [None, 1]
    with Client(address) as client:
        for ready_target, expected in ((None, 2), (1, 1), (None, 1), (2, 2)):
            asyncio.run(up._make_pool(address, ready_target))
            assert client.pools.get("python").spec.ready_target == expected


def test_a_build_has_its_fraction() -> None:
    from sandpool.cli.progress import fraction_of, wait_text

    pool = pool_pb2.Pool(spec=pool_pb2.PoolSpec(ready_target=4), counts=pool_pb2.PoolCounts(warm=2, outdated=1))
    assert (fraction_of(pool), wait_text(pool)) == (0.25, "1 of 4 VMs are warm")
    pool.conditions.add(
        type=pool_pb2.POOL_CONDITION_TYPE_BUILDING_TEMPLATE, reason="BUILDING_TEMPLATE", message="kernel (37%)"
    )
    assert (fraction_of(pool), wait_text(pool)) == (0.37, "BUILDING_TEMPLATE: kernel (37%)")
