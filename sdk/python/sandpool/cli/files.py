"""`sandpool cp`."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from sandpool.aio import AsyncClient
from sandpool.cli.names import SessionName

Remote = tuple[SessionName, str]


async def copy(client: AsyncClient, source: str, destination: str, here: Remote | None, there: Remote | None) -> None:
    """From a local path to there, or from here (a session) to a local path. Raises SandpoolError, OSError."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        if there is not None:
            session, path = there
            local = Path(source)
            target = path + local.name if path == "" or path.endswith("/") else path
            task = bar.add_task("", total=local.stat().st_size)
            files = client.session(session.pool, session.identifier, pin=False).files
            await files.upload(local, target, lambda count: bar.advance(task, count))
        elif here is not None:
            session, path = here
            local = Path(destination)
            if local.is_dir():
                local = local / PurePosixPath(path).name
            files = client.session(session.pool, session.identifier, pin=False).files
            task = bar.add_task("", total=(await files.stat(path)).size_bytes)
            await files.download(path, local, lambda count: bar.advance(task, count))
