"""Starting processes for user code: the one place of the agent that does."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Launcher:
    """Starts programs in sessions of their own, in the data directory, as the user of user code."""

    def __init__(self, data: Path, environment: Mapping[str, str], user: int | None) -> None:
        self.data = data
        self._environment = dict(environment)
        self._user = user

    async def start(
        self,
        _name: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        streams: Mapping[str, Any],
    ) -> asyncio.subprocess.Process:
        """Start a program; streams are keywords of create_subprocess_exec. Raises OSError if it cannot be started."""
        identity: dict[str, Any] = {}
        if self._user is not None:
            identity = {"user": self._user, "group": self._user, "extra_groups": ()}
        return await asyncio.create_subprocess_exec(
            arguments[0],
            *arguments[1:],
            env={**self._environment, **(env or {})},
            cwd=self.data / (cwd or ""),
            start_new_session=True,
            **identity,
            **streams,
        )
