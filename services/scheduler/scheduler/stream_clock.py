"""Whose time a stream takes: a block that holds a yield cannot be a stage."""

from __future__ import annotations

import time
from types import TracebackType

from service_kit import telemetry


class StreamClock:
    """The guest's until a message is here, the client's until it wants the next one; stages of the rpc at the end."""

    def __init__(self) -> None:
        self._seconds = {"guest": 0.0, "client": 0.0}
        self._turn = ""
        self._since = 0.0

    def __enter__(self) -> StreamClock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped()
        for name, seconds in self._seconds.items():
            telemetry.add_stage(name, seconds)

    def sent(self) -> None:
        """The guest has been asked, or is about to be."""
        self._switch("guest")

    def received(self) -> None:
        """The guest has said something."""
        self._switch("client")

    def delivered(self) -> None:
        """The client has taken it."""
        self._switch("guest")

    def stopped(self) -> None:
        """The stream has ended, however that was: what comes now is nobody's."""
        self._switch("")

    def _switch(self, turn: str) -> None:
        now = time.perf_counter()
        if self._turn:
            self._seconds[self._turn] += now - self._since
        self._turn, self._since = turn, now
