"""`sandpool run` and `sandpool exec`: output as it is produced, the program's exit code as ours."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
import signal
import sys
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from sandpool import events
from sandpool.aio import AsyncClient
from sandpool.cli.output import camel, emit
from sandpool.execution import Events
from sandpool.session import AsyncSession

# As in timeout(1) and shells.
TIMED_OUT, KILLED, SIGNALLED, CANCELLED = 124, 137, 128, 130


async def run(client: AsyncClient, session: AsyncSession, stream: Events, output: Output) -> int:
    """To the end. The first Ctrl-C cancels the execution, the second one leaves it. Raises SandpoolError."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    cancelling: list[asyncio.Task[bool]] = []

    def interrupt() -> None:
        if output.execution_id and not cancelling:
            cancelling.append(loop.create_task(session.cancel(output.execution_id)))
        else:
            task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        async with aclosing(stream):
            async for event in stream:
                output.show(event)
    except BrokenPipeError:  # nobody reads: as a pipe would end it
        await session.cancel(output.execution_id)
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for one in cancelling:
            one.cancel()
        await asyncio.gather(*cancelling, return_exceptions=True)
    return output.exit_code


class Output:
    """Bytes to stdout and stderr; or one JSON object per event."""

    def __init__(self, as_json: bool, save_results: Path | None) -> None:
        self._json, self._save = as_json, save_results
        self.execution_id = ""
        self.exit_code = KILLED

    def show(self, event: events.Event) -> None:
        """One event."""
        if isinstance(event, events.Started):
            self.execution_id = event.execution_id
        elif isinstance(event, events.Ended):
            self.exit_code = exit_code(event)
        if self._json:
            emit(as_json(event))
        elif isinstance(event, events.Stdout | events.Stderr):
            target = sys.stdout if isinstance(event, events.Stdout) else sys.stderr
            target.buffer.write(event.data)
            target.buffer.flush()
        elif isinstance(event, events.Failure):
            print(event.traceback or f"{event.name}: {event.value}", file=sys.stderr, flush=True)
        elif isinstance(event, events.Gap):
            print(f"sandpool: {event.source}: output is missing here ({event.reason})", file=sys.stderr, flush=True)
        elif isinstance(event, events.Ended):
            _say_how(event)
        if isinstance(event, events.Display):
            self._display(event)

    def _display(self, display: events.Display) -> None:
        if self._save is not None and display.mime_type != "text/plain":
            self._save.mkdir(parents=True, exist_ok=True)
            suffix = mimetypes.guess_extension(display.mime_type) or ".bin"
            path = self._save / f"result-{display.result_id}{suffix}"
            path.write_bytes(display.data)
            print(f"saved {path}", file=sys.stderr, flush=True)
        elif display.mime_type == "text/plain" and not self._json:
            print(display.data.decode(errors="replace"), flush=True)


def exit_code(ended: events.Ended) -> int:
    """For a shell: the program's own, 128 + its signal, 124 after a timeout, 130 cancelled, 137 else killed."""
    if ended.killed is not None:
        return {"TIMEOUT": TIMED_OUT, "CANCELLED": CANCELLED}.get(ended.killed, KILLED)
    if ended.signal is not None:
        return SIGNALLED + ended.signal
    return (ended.exit_code or 0) & 0xFF


def as_json(event: events.Event) -> dict[str, Any]:
    """One line of --json."""
    values = dict(vars(event))
    if isinstance(event, events.Stdout | events.Stderr | events.Display):
        del values["data"]
        values |= _data(event)
    if "timings" in values:
        values["timings"] = {camel(name): value for name, value in values["timings"].items()}
    return {"event": type(event).__name__.lower(), **{camel(name): value for name, value in values.items()}}


def _data(event: events.Stdout | events.Stderr | events.Display) -> dict[str, str]:
    """Every byte as it is: a chunk of output may begin and end within a character."""
    if not isinstance(event, events.Display) or _is_text(event.mime_type):
        with suppress(UnicodeDecodeError):
            return {"data": event.data.decode()}
    return {"data_base64": base64.b64encode(event.data).decode()}


def _is_text(mime_type: str) -> bool:
    return mime_type.startswith("text/") or mime_type.endswith(("json", "+xml", "/javascript"))


def _say_how(ended: events.Ended) -> None:
    if ended.killed is not None:
        print(f"sandpool: killed ({ended.killed})", file=sys.stderr, flush=True)
    elif ended.signal is not None:
        print(f"sandpool: ended by signal {ended.signal}", file=sys.stderr, flush=True)
    if ended.state_lost:
        print("sandpool: the Python worker ended; its variables are gone", file=sys.stderr, flush=True)
