"""What every command does alike: options, a connection, errors as messages and exit codes, tables or JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from sandpool.errors import InvalidArgument, NotFound, SandpoolError, Unavailable

T = TypeVar("T")
# 66, 69 and 70 as in sysexits.h; 128 + N as a shell says it of signal N.
WRONG_USAGE, NOT_FOUND, UNREACHABLE, FAILED, INTERRUPTED, BROKEN_PIPE = 2, 66, 69, 70, 130, 141
EXIT_CODES = """
Exit codes: of run and exec, the program's own; 1 after an exception, 124 after a timeout, 128+N ended by signal N, 137
killed by sandpool (memory, for example), 130 after Ctrl-C. Of sandpool itself: 2 wrong usage, 66 not found, 69 sandpool
cannot be reached, 70 any other error.
"""


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        known = context.ensure_object(dict)
        known[name] = value or known.get(name)

    return callback


def _common() -> list[click.Parameter]:
    return [
        click.Option(
            ["--address"],
            expose_value=False,
            callback=_remember("address"),
            help="Of sandpool: host:port or unix:PATH.  [default: $SANDPOOL_ADDRESS, else 127.0.0.1:7280]",
        ),
        click.Option(
            ["--json"], is_flag=True, expose_value=False, callback=_remember("json"), help="Say everything in JSON."
        ),
    ]


class Command(click.Command):
    """With --address and --json."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.extend(_common())


class Group(click.Group):
    """Of such commands; takes the two options itself, too."""

    command_class = Command
    group_class = type

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.extend(_common())


def call(context: click.Context, work: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """Run work(client) and turn errors into messages and exit codes."""
    from sandpool.aio import AsyncClient

    async def run() -> Any:
        async with AsyncClient(context.obj["address"]) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except SandpoolError as error:
        click.echo(f"sandpool: {error}{_hint(error)}", err=True)
        sys.exit(exit_code_of(error))
    except OSError as error:
        click.echo(f"sandpool: {error}", err=True)
        sys.exit(FAILED)
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit(INTERRUPTED)


def exit_code_of(error: SandpoolError) -> int:
    """As EXIT_CODES says."""
    codes = {InvalidArgument: WRONG_USAGE, NotFound: NOT_FOUND, Unavailable: UNREACHABLE}
    return codes.get(type(error), FAILED)


def _hint(error: SandpoolError) -> str:
    if isinstance(error, Unavailable):
        return "\nIs it running (`sandpool up`), and at this address (--address, SANDPOOL_ADDRESS)?"
    if error.retry_after_seconds is not None:
        return f"\nAnother try may succeed in {error.retry_after_seconds:g} s."
    return ""


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


def as_dict(message: Message) -> dict[str, Any]:
    """For JSON, with the names of the protos."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def show(context: click.Context, messages: Sequence[Message], header: str, line: Callable[[Any], str]) -> None:
    """A table for people, or a JSON array."""
    if context.obj["json"]:
        click.echo(json.dumps([as_dict(message) for message in messages], indent=2))
        return
    click.echo(header)
    for message in messages:
        click.echo(line(message))


def show_one(context: click.Context, message: Message, header: str, line: Callable[[Any], str]) -> None:
    """The same of one: a JSON object."""
    if context.obj["json"]:
        click.echo(json.dumps(as_dict(message), indent=2))
    else:
        show(context, [message], header, line)
