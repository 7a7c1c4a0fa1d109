"""The demo leaves nothing behind, however it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "demo"
SOURCE = """
import asyncio, demo
async def main():
    async with demo.installation("--driver", "fake"):
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def command_lines() -> dict[int, list[str]]:
    """Of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
    return found


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGTERM, signal.SIGHUP]])
def test_a_demo_that_is_ended_leaves_nothing(signals: list[signal.Signals]) -> None:
    command = [sys.executable, "-c", SOURCE]
    with subprocess.Popen(command, cwd=DEMO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        up = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        words = command_lines()[up]
        state = words[words.index("--state-dir") + 1]
        for number in signals:
            process.send_signal(number)
        status = process.wait(timeout=60)
    left = [pid for pid, line in command_lines().items() if any(state in word for word in line)]
    there = Path(state).exists()
    if left:  # not for the next test to find
        os.kill(up, signal.SIGINT)
        while any(state in word for line in command_lines().values() for word in line):
            time.sleep(0.05)
    shutil.rmtree(state, ignore_errors=True)
    assert (status, left, there) == (1, [], False)
