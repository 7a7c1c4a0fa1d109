"""What the documents show is run, and what they list is what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pool_manager import happened
from sandpool.cli import exits
from sandpool.v1 import event_pb2

DOCS = Path(__file__).parents[3] / "docs"


def blocks(name: str, language: str) -> list[tuple[str, str]]:
    """The code of a document, by the headings above it."""
    parts = re.split(r"^## (.*)$", (DOCS / name).read_text(), flags=re.MULTILINE)
    return [
        (heading, code)
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
        for code in re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize(("heading", "code"), blocks("sdk.md", "python"), ids=lambda value: value[:20])
def test_an_example_of_the_sdk_runs(address: str, tmp_path: Path, heading: str, code: str) -> None:
    environment = {**os.environ, "SANDPOOL_ADDRESS": address}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{heading}:\n{done.stderr}"


@pytest.mark.parametrize(("heading", "code"), blocks("cli.md", "sh"), ids=lambda value: value[:20])
def test_an_example_of_the_command_line_runs(address: str, tmp_path: Path, heading: str, code: str) -> None:
    (tmp_path / "sandpool").write_text(f'#!/bin/sh\nexec {sys.executable} -m sandpool.cli "$@"\n')
    (tmp_path / "sandpool").chmod(0o755)
    environment = {**os.environ, "SANDPOOL_ADDRESS": address, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-euc", f"sandpool run -c 0 >/dev/null\n{code}"]  # a session that the examples may speak of
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{heading}:\n{done.stderr}"


def test_there_is_something_to_run() -> None:
    assert len(blocks("sdk.md", "python")) >= 6 and len(blocks("cli.md", "sh")) >= 4


def test_every_exit_code_is_documented() -> None:
    table = (DOCS / "cli.md").read_text().split("## Exit codes")[1]
    for name, code in vars(exits).items():
        if name.isupper() and isinstance(code, int):
            assert f"\n| {code} |" in table and str(code) in exits.EXIT_CODES, name


def test_every_event_and_every_reason_of_ours_is_documented() -> None:
    text = (DOCS / "operations.md").read_text().split("## Events")[1].split("\n## ")[0]
    types = {name.removeprefix("EVENT_TYPE_") for name in event_pb2.EventType.DESCRIPTOR.values_by_name}
    types.remove("UNSPECIFIED")
    assert types == set(re.findall(r"^\| ([A-Z_]+) \|", text, flags=re.MULTILINE))
    source = Path(happened.__file__).read_text()
    for reason in set(re.findall(r'"([A-Z][A-Z_]+[A-Z])"', source)) | {"NO_HEARTBEAT", "WATCH_ENDED"}:
        assert reason in text or reason in ("END_REASON_",), reason
