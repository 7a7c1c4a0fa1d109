"""`sandpool` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SANDPOOL = [sys.executable, "-m", "sandpool.cli"]


def sandpool(address: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """To its end."""
    environment = {**os.environ, "SANDPOOL_ADDRESS": address, **options.pop("env", {})}
    command = [*SANDPOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, check=False, timeout=60, **options)


def start(address: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Running."""
    environment = {**os.environ, "SANDPOOL_ADDRESS": address}
    return subprocess.Popen(
        [*SANDPOOL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


def objects(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    """Of --json: every line is one."""
    return [json.loads(line) for line in done.stdout.splitlines()]
