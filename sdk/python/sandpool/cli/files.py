"""`sandpool cp`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sandpool.aio import AsyncClient
from sandpool.cli.names import SessionName
from sandpool.cli.progress import transfer
from sandpool.v1 import file_pb2

Remote = tuple[SessionName, str]


async def copy(
    client: AsyncClient, source: str, destination: str, here: Remote | None, there: Remote | None
) -> file_pb2.FileInfo:
    """From a local path to there, or from here (a session) to a local path; what was copied. Raises OSError, too."""
    with transfer() as bar:
        if there is not None:
            session, path = there
            local = Path(source)
            target = path + local.name if path == "" or path.endswith("/") else path
            task = bar.add_task(local.name, total=local.stat().st_size)
            files = client.session(session.pool, session.identifier, pin=False).files
            return await files.upload(local, target, lambda count: bar.advance(task, count))
        if here is not None:
            session, path = here
            local = Path(destination)
            if local.is_dir():
                local = local / PurePosixPath(path).name
            files = client.session(session.pool, session.identifier, pin=False).files
            found = await files.stat(path)
            task = bar.add_task(local.name, total=found.size_bytes)
            await files.download(path, local, lambda count: bar.advance(task, count))
            return found
    raise ValueError("one of the two is in a session")
