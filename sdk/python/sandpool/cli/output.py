"""What commands print: tables and lines for people; with --json one object a line, named as protobuf names JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.message import Message

_UNDERSCORE = re.compile(r"_([a-z0-9])")


def as_dict(message: Message) -> dict[str, Any]:
    """Of a message: fields that are zero are there, too; 64-bit numbers are strings, as protobuf has them in JSON."""
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


def camel(name: str) -> str:
    """exit_code: exitCode."""
    return _UNDERSCORE.sub(lambda match: match[1].upper(), name)


def emit(values: Mapping[str, Any]) -> None:
    """One line of JSON, at once."""
    click.echo(json.dumps(values))


def show(context: click.Context, messages: Sequence[Message], header: str, line: Callable[[Any], str]) -> None:
    """A table for people, or an object a line."""
    if context.obj["json"]:
        for message in messages:
            emit(as_dict(message))
        return
    click.echo(header)
    for message in messages:
        click.echo(line(message))


def say(context: click.Context, text: str, **values: Any) -> None:
    """A sentence for people, or an object."""
    if context.obj["json"]:
        emit({camel(name): value for name, value in values.items()})
    else:
        click.echo(text)
