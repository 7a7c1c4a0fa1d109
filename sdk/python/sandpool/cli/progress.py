"""How far something is: bars on a terminal, a line per news elsewhere. Always on stderr."""

from __future__ import annotations

import re
import sys
from types import TracebackType
from typing import NoReturn, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from sandpool.cli.exits import TRY_AGAIN, describe_own
from sandpool.v1 import pool_pb2

# As the pool-manager writes it at the end of what a build says.
_PERCENT = re.compile(r"\((\d{1,3})%\)$")


def transfer() -> Progress:
    """Of bytes; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def wait_text(pool: pool_pb2.Pool) -> str:
    """What a pool waits for."""
    conditions = "; ".join(f"{condition.reason}: {condition.message}" for condition in pool.conditions)
    return conditions or f"{pool.counts.warm - pool.counts.outdated} of {pool.spec.ready_target} VMs are warm"


def fraction_of(pool: pool_pb2.Pool) -> float:
    """0 to 1: of the build that goes on, else of the VMs."""
    for condition in pool.conditions:
        if condition.type == pool_pb2.POOL_CONDITION_TYPE_BUILDING_TEMPLATE:
            match = _PERCENT.search(condition.message)
            return int(match[1]) / 100 if match else 0.0
    return min(1.0, (pool.counts.warm - pool.counts.outdated) / max(1, pool.spec.ready_target))


class Waiting:
    """Shows what a pool waits for while it is waited for."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        terminal = sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not terminal, transient=True)
        self._task = self._bar.add_task("starting", total=1.0)
        self._terminal = terminal
        self.text = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def give_up(self, text: str, as_json: bool) -> NoReturn:
        """The time is over: a sentence and why, then the end of the process."""
        self._bar.stop()
        print(describe_own(f"{text}: {self.text}", "WAIT_TIMEOUT", as_json), file=sys.stderr, flush=True)
        sys.exit(TRY_AGAIN)

    def report(self, pool: pool_pb2.Pool) -> None:
        """The pool as it is now."""
        text = wait_text(pool)
        self._bar.update(self._task, description=text, completed=fraction_of(pool))
        if text != self.text and not self._terminal:
            print(text, file=sys.stderr, flush=True)
        self.text = text
