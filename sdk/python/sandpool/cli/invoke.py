"""What every command does alike: options, a connection, errors as messages and exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from itertools import takewhile
from typing import Any, TypeVar

import click

from sandpool.cli import exits
from sandpool.errors import SandpoolError

T = TypeVar("T")
# Completion of names is given up after this: nobody waits for it.
COMPLETION_SECONDS = 1.0


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        known = context.ensure_object(dict)
        known[name] = value or known.get(name)

    return callback


def json_option() -> click.Option:
    """--json."""
    return click.Option(
        ["--json"],
        is_flag=True,
        expose_value=False,
        callback=_remember("json"),
        help="Say everything in JSON, one object a line.",
    )


def _common() -> list[click.Parameter]:
    address = click.Option(
        ["--address"],
        expose_value=False,
        callback=_remember("address"),
        help="Of sandpool: host:port or unix:PATH.  [default: $SANDPOOL_ADDRESS, else 127.0.0.1:7280]",
    )
    return [address, json_option()]


class ReaderGone(Exception):
    """Nobody reads our output any more."""


class Command(click.Command):
    """With --address and --json."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.extend(_common())


class LocalCommand(click.Command):
    """With --json: it needs no connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(json_option())


class Group(click.Group):
    """Of such commands; takes the two options itself, too."""

    command_class = Command
    group_class = type

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.extend(_common())

    def invoke(self, ctx: click.Context) -> Any:
        """As every group. Raises ReaderGone: click would call it an error."""
        try:
            done = super().invoke(ctx)
            sys.stdout.flush()  # found out here, and not at the interpreter's end
            return done
        except BrokenPipeError as error:
            raise ReaderGone from error


def call(context: click.Context, work: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """Run work(client) and turn errors into messages and exit codes."""
    from sandpool.aio import AsyncClient

    async def run() -> Any:
        _end_at_interrupt()
        async with AsyncClient(context.obj["address"]) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except SandpoolError as error:
        click.echo(exits.describe(error, bool(context.obj["json"])), err=True)
        sys.exit(exits.exit_code_of(error))


def _end_at_interrupt() -> None:
    """Cancel this task at the first Ctrl-C; the next one is Python's.

    asyncio.run() does that too, but its handler wakes nobody: a signal that comes just before the loop begins to wait
    would be heeded at the next event, if there is one.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        assert task is not None
        task.cancel()

    with suppress(NotImplementedError):  # not there on Windows
        loop.add_signal_handler(signal.SIGINT, interrupt)


def run_command(command: click.Command) -> None:
    """The whole process: whatever happens ends in an exit code and at most a sentence."""
    try:
        command.main(prog_name="sandpool", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        if _json_asked():
            reason = "WRONG_USAGE" if isinstance(error, click.UsageError) else "FAILED"
            click.echo(exits.describe_own(error.format_message(), reason, True), err=True)
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, asyncio.CancelledError, KeyboardInterrupt):
        sys.exit(exits.INTERRUPTED)
    except ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exits.BROKEN_PIPE)
    except OSError as error:
        click.echo(exits.describe_own(str(error), "OS_ERROR", _json_asked()), err=True)
        sys.exit(exits.FAILED)
    except Exception as error:
        if os.environ.get("SANDPOOL_DEBUG"):
            traceback.print_exc()
        text = f"this is a bug: {error!r} (more of it with SANDPOOL_DEBUG=1)"
        click.echo(exits.describe_own(text, "BUG", _json_asked()), err=True)
        sys.exit(exits.FAILED)


def _json_asked() -> bool:
    """Also where the options could not be read. What follows -- is a program's."""
    return "--json" in takewhile(lambda word: word != "--", sys.argv)


async def gathered(items: AsyncIterator[T]) -> list[T]:
    """All of them."""
    return [item async for item in items]


def converted(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that turns an option's text into a value."""

    def callback(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def pool_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion: asks sandpool, if it answers at once."""
    from sandpool.aio import AsyncClient

    async def ask() -> list[str]:
        async with asyncio.timeout(COMPLETION_SECONDS), AsyncClient() as client:
            return [pool.name async for pool in client.pools.list()]

    with suppress(SandpoolError, TimeoutError):
        return [name for name in asyncio.run(ask()) if name.startswith(incomplete)]
    return []
