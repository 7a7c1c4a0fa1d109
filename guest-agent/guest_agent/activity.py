"""Whether the session is idle, and for how long. Pure: time comes in, as seconds of a monotonic clock."""

from dataclasses import dataclass


class Sealed(Exception):
    """The agent refuses data-plane calls."""


@dataclass(frozen=True)
class SealAnswer:
    """sealed, or remaining_seconds until it may be (None while something goes on)."""

    sealed: bool
    remaining_seconds: float | None


class Activity:
    """Counts calls and executions. One owner: the guest agent's event loop."""

    def __init__(self, now: float) -> None:
        self.calls = 0
        self.executions = 0
        self.sealed = False
        self._idle_since = now

    def reset(self, now: float) -> None:
        """Begin to count idle time now: a clone has just become a VM of its own."""
        self._idle_since = now

    def begin_call(self) -> None:
        """Raises Sealed."""
        if self.sealed:
            raise Sealed
        self.calls += 1

    def end_call(self, now: float) -> None:
        """Every begin_call is followed by exactly one."""
        self.calls -= 1
        self._idle_since = now

    def begin_execution(self) -> None:
        """Called inside a call, which was let in: never refused."""
        self.executions += 1

    def end_execution(self, now: float) -> None:
        """Every begin_execution is followed by exactly one."""
        self.executions -= 1
        self._idle_since = now

    def idle_seconds(self, now: float) -> float | None:
        """None while a call or an execution goes on."""
        return None if self.calls or self.executions else max(0.0, now - self._idle_since)

    def seal(self, now: float, only_if_idle_seconds: float, force: bool) -> SealAnswer:
        """Refuse every later call, if idle for long enough or by force. Atomic: no await in between."""
        idle = self.idle_seconds(now)
        if force or self.sealed or (idle is not None and idle >= only_if_idle_seconds):
            self.sealed = True
            return SealAnswer(True, None)
        return SealAnswer(False, None if idle is None else only_if_idle_seconds - idle)

    def unseal(self) -> None:
        """Serve again."""
        self.sealed = False
