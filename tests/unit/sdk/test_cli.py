"""The command line as a process, against real services."""

from __future__ import annotations

import base64
import signal
import subprocess
from pathlib import Path

import pytest

from sandpool.cli.execute import as_json
from sandpool.events import Display, Event, Stderr, Stdout

from .cli import objects, sandpool, start

PNG = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["run", "-c", "print(1)"], 0),
        (["run", "-c", "1/0"], 1),
        (["run", "-c", "exit(3)"], 3),
        (["run", "-c", "while True: pass", "--timeout", "300ms"], 124),
        (["exec", "--", "false"], 1),
        (["exec", "sh", "-c", "exit 9"], 9),
        (["exec", "--", "sh", "-c", "kill -9 $$"], 137),
        (["run", "-c", "1", "--pool", "nowhere"], 66),
        (["run", "-c", "1", "--session", "a b"], 2),
        (["run"], 2),
        (["run", "-c", "1", "--timeout", "soon"], 2),
        (["cp", "here", "there"], 2),
        (["pool", "get", "nowhere"], 66),
        (["ls", "nobody"], 66),
        (["ls", "/a"], 2),
        (["--address", "127.0.0.1:1", "ls"], 69),
        (["ls", "--address", "127.0.0.1:1"], 69),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes(address: str, arguments: list[str], status: int) -> None:
    done = sandpool(address, *arguments)
    assert done.returncode == status, done.stderr.decode()
    assert b"Traceback (most recent call last)\n  File" not in done.stderr


def test_output_goes_where_it_was_written(address: str) -> None:
    done = sandpool(address, "run", "-c", "import os, sys; os.write(1, b'\\xff\\0'); print('e', file=sys.stderr); 6*7")
    assert (done.stdout, done.stderr) == (b"\xff\x0042\n", b"e\n")


def test_state_is_kept_by_session(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 5")
    assert sandpool(address, "run", tmp_path / "a.py", "--session", "state").returncode == 0
    assert sandpool(address, "run", "-c", "x", "--session", "state").stdout == b"5\n"
    assert sandpool(address, "run", "-c", "x", "--session", "other").returncode == 1
    assert sandpool(address, "stop", "state").stdout == b"stopped\n"
    again = objects(sandpool(address, "--json", "stop", "python/state"))
    assert again == [{"pool": "python", "session": "state", "stopped": False}]


def test_results_in_json_and_as_files(address: str, tmp_path: Path) -> None:
    source = (
        f"class Picture:\n  def _repr_png_(self): return {PNG!r}\n"
        "from IPython.display import display\ndisplay(Picture())\n{'a': 1}"
    )
    done = sandpool(address, "run", "--json", "-c", source)
    events = objects(done)
    assert [events[0]["event"], events[-1]["event"], events[-1]["exitCode"]] == ["started", "ended", 0]
    pictures = [base64.b64decode(event["dataBase64"]) for event in events if event.get("mimeType") == "image/png"]
    assert pictures == [PNG]
    done = sandpool(address, "run", "--save-results", tmp_path, "-c", source)
    assert b"{'a': 1}" in done.stdout and [path.read_bytes() for path in tmp_path.glob("*.png")] == [PNG]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Stdout("grüße".encode()), {"event": "stdout", "data": "grüße"}),
        (Stdout(b"\xe2\x82"), {"event": "stdout", "dataBase64": "4oI="}),
        (Stderr(b"\xff"), {"event": "stderr", "dataBase64": "/w=="}),
        (Stdout(b""), {"event": "stdout", "data": ""}),
        (
            Display(1, "text/html", b"\xff", False),
            {"event": "display", "resultId": 1, "mimeType": "text/html", "isValue": False, "dataBase64": "/w=="},
        ),
    ],
)
def test_no_byte_is_lost_in_json(event: Event, expected: dict[str, object]) -> None:
    assert as_json(event) == expected


def test_files_are_copied_and_listed(address: str, tmp_path: Path) -> None:
    local = tmp_path / "a.bin"
    local.write_bytes(bytes(range(256)) * 5000)
    assert sandpool(address, "cp", local, "files:d/").returncode == 0
    listed = objects(sandpool(address, "ls", "files:d", "--json"))
    assert [(file["path"], file["sizeBytes"]) for file in listed] == [("d/a.bin", "1280000")]
    (copied,) = objects(sandpool(address, "cp", "--json", "python/files:d/a.bin", tmp_path / "b.bin"))
    assert copied["path"] == "d/a.bin"
    assert (tmp_path / "b.bin").read_bytes() == local.read_bytes()
    assert b"d/a.bin" in sandpool(address, "ls", "-r", "files").stdout
    assert "files" in [one["identifier"] for one in objects(sandpool(address, "ls", "--json"))]


def test_pools_and_nodes(address: str) -> None:
    assert sandpool(address, "pool", "create", "mine", "--ready-target", "0", "--memory", "256MiB").returncode == 0
    (updated,) = objects(sandpool(address, "pool", "update", "mine", "--cooldown", "7s", "--json"))
    assert (updated["spec"]["cooldown"], updated["spec"]["resources"]["memoryBytes"]) == ("7s", str(256 << 20))
    assert sandpool(address, "pool", "update", "mine").returncode == 2
    assert b"mine" in sandpool(address, "pool", "list").stdout
    assert sandpool(address, "pool", "delete", "mine").returncode == 0
    assert [node["driver"] for node in objects(sandpool(address, "nodes", "--json"))] == ["fake"]


def run(address: str, source: str, before: str = "") -> subprocess.Popen[bytes]:
    """Running, and past its first line of output."""
    code = f"{before}\nprint('go', flush=True)\n{source}"
    process = start(address, "run", "--session", "interrupted", "-c", code)
    assert process.stdout is not None and process.stdout.readline() == b"go\n"
    return process


def test_ctrl_c_cancels_and_keeps_the_state(address: str) -> None:
    process = run(address, "import time\ntime.sleep(1000)", before="kept = 1")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"CANCELLED" in errors
    after = sandpool(address, "run", "--session", "interrupted", "-c", "kept")
    assert after.stdout == b"1\n", (errors, after)


def test_a_reader_that_goes_away_ends_the_program(address: str) -> None:
    process = run(address, "while True: print('x' * 1000, flush=True)")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.wait(timeout=60)
    process.stderr.close()
    assert process.returncode == 141
    assert sandpool(address, "run", "--session", "interrupted", "-c", "2").stdout == b"2\n"


def test_doctor_says_what_to_do() -> None:
    done = sandpool("", "doctor", "--json")
    findings = objects(done)
    assert {"python", "qemu", "kvm", "image tools", "memory", "disk", "cgroups"} <= {one["name"] for one in findings}
    assert all(one["remedy"] for one in findings if one["status"] != "ok")
    assert done.returncode == any(one["status"] == "missing" for one in findings)
    assert sandpool("", "doctor").stdout
