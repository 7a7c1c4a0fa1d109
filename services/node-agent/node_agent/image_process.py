"""The image builder as a process: its lines are progress, its end is ours, and it ends when we do."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Debian's tools clean up after themselves when they are asked to end.
STOP_SECONDS = 10.0


async def build(cache_dir: Path, progress: Callable[[str, float], None]) -> Path:
    """The directory of the image of this source tree, from the cache or built now. Raises RuntimeError."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sandpool_image", "--cache", str(cache_dir), "--lifeline"),
        stdin=asyncio.subprocess.PIPE,  # its end tells the builder that we are gone
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    last = ""
    try:
        async for raw in process.stderr:
            line = raw.decode(errors="replace").strip()
            percent, _, message = line.partition("% ")
            if percent.isdigit():
                progress(message, int(percent) / 100)
            elif line:
                last = line
        directory = (await process.stdout.read()).decode().strip()
        if await process.wait() != 0:
            raise RuntimeError(last or "the image builder failed")
        return Path(directory)
    finally:
        if process.returncode is None:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The whole group: it is a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
            return
