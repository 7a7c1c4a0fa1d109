"""Whose time a stream takes: a block that holds a yield cannot be a stage."""

from __future__ import annotations

import time

from service_kit import telemetry


class StreamClock:
    """The guest's until a message or the end is here, the client's until it wants the next one."""

    def __init__(self) -> None:
        self._guest = self._client = 0.0
        self._mark = 0.0

    def sent(self) -> None:
        """The guest has been asked, or is about to be."""
        self._mark = time.perf_counter()

    def received(self) -> None:
        """The guest has said something, or that there is no more."""
        now = time.perf_counter()
        self._guest += now - self._mark
        self._mark = now

    def delivered(self) -> None:
        """The client has taken it."""
        now = time.perf_counter()
        self._client += now - self._mark
        self._mark = now

    def finish(self) -> None:
        """As stages of the rpc."""
        telemetry.add_stage("guest", self._guest)
        telemetry.add_stage("client", self._client)
