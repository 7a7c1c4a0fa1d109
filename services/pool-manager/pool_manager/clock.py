"""What durations are counted with. Pure: time comes in.

The wall clock may be set at any moment, and a session must end neither early nor late for it, even if the process that
knows its deadline is another one by then. So rows hold times of a clock of our own: what the wall clock said when a
pool-manager first ran after the boot of its host, and the seconds since then. What is shown to people is translated.
"""

from collections.abc import Callable


class Clock:
    """offset is what makes seconds since the boot seconds since the epoch: the same one after every restart of ours."""

    def __init__(self, offset: float, boot_seconds: Callable[[], float], wall: Callable[[], float]) -> None:
        self._offset = offset
        self._boot_seconds = boot_seconds
        self._wall = wall

    def now(self) -> float:
        """For rows, and to compare them with."""
        return self._boot_seconds() + self._offset

    def shown(self, moment: float) -> float:
        """A moment of ours as the wall clock says it now, in seconds since the epoch."""
        # A tenth of a second: what the same moment is shown as must not differ with every look.
        return moment + round(self._wall() - self.now(), 1)
