"""The command `sandpool`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sandpool.cli import installation, names
from sandpool.cli.exits import EXIT_CODES
from sandpool.cli.invoke import Group, call, converted, gathered, pool_names, run_command
from sandpool.cli.output import as_dict, emit, say, show
from sandpool.cli.pools import pool


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES
)
@click.version_option(package_name="sandpool")
def cli() -> None:
    """Warm pools of microVMs that run untrusted code."""


def session_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Of run and exec."""
    for option in (
        click.option("--env", multiple=True, metavar="NAME=VALUE", help="May be given several times."),
        click.option("--timeout", callback=converted(names.parse_seconds), help="Of the program, for example 30s."),
        click.option("--session", default=names.DEFAULT_SESSION, show_default=True, help="Identifier of the session."),
        click.option(
            "--pool",
            default=names.DEFAULT_POOL,
            show_default=True,
            help="Where a new session comes from.",
            shell_complete=pool_names,
        ),
    ):
        command = option(command)
    return command


def execute(context: click.Context, pool: str, session: str, save: Path | None, start: Callable[[Any], Any]) -> None:
    """Stream an execution and exit with its code."""
    from sandpool.cli.execute import Output, run

    async def work(client: Any) -> int:
        handle = client.session(pool, session, pin=False)
        return await run(client, handle, start(handle), Output(context.obj["json"], save))

    sys.exit(call(context, work))


def environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """Of NAME=VALUE."""
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r}: NAME=VALUE is expected", param_hint="--env")
    return dict(pair.split("=", 1) for pair in pairs)


@cli.command(epilog=EXIT_CODES)
@click.argument("file", type=click.File("r", encoding="utf-8"), required=False)
@click.option("-c", "code", help="The code itself.")
@click.option("--save-results", type=click.Path(path_type=Path), help="Directory for pictures and other results.")
@session_options
@click.pass_context
def run(
    context: click.Context,
    file: Any,
    code: str | None,
    save_results: Path | None,
    pool: str,
    session: str,
    timeout: float | None,
    env: tuple[str, ...],
) -> None:
    """Run Python code in a session; its state is kept for the next run. FILE may be - for standard input."""
    if (file is None) == (code is None):
        raise click.UsageError("either FILE or -c CODE")
    try:
        source = code if code is not None else file.read()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file.name} is no text in UTF-8") from error
    fields = {"timeout": timeout, "env": environment(env)}
    execute(context, pool, session, save_results, lambda handle: handle.stream(source, **fields))


@cli.command("exec", epilog=EXIT_CODES, context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True)
@session_options
@click.pass_context
def exec_(
    context: click.Context,
    command: tuple[str, ...],
    pool: str,
    session: str,
    timeout: float | None,
    env: tuple[str, ...],
) -> None:
    """Run a command in a session: sandpool exec -- ls -l"""
    fields = {"timeout": timeout, "env": environment(env)}
    execute(context, pool, session, None, lambda handle: handle.stream_command(list(command), **fields))


def remote_of(text: str, default_pool: str = names.DEFAULT_POOL) -> Any:
    """As names.parse_remote. Raises UsageError."""
    try:
        return names.parse_remote(text, default_pool)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@cli.command()
@click.argument("source")
@click.argument("destination")
@click.pass_context
def cp(context: click.Context, source: str, destination: str) -> None:
    """Copy a file to or from a session, named [POOL/]SESSION:PATH."""
    from sandpool.cli.files import copy

    there, here = remote_of(destination), remote_of(source)
    if (there is None) == (here is None):
        raise click.UsageError("one of the two is a local path, the other [POOL/]SESSION:PATH")
    copied = call(context, lambda client: copy(client, source, destination, here, there))
    if context.obj["json"]:
        emit(as_dict(copied))


@cli.command()
@click.argument("target", required=False)
@click.option("--pool", default=names.DEFAULT_POOL, show_default=True, shell_complete=pool_names)
@click.option("-r", "--recursive", is_flag=True)
@click.pass_context
def ls(context: click.Context, target: str | None, pool: str, recursive: bool) -> None:
    """The sessions of a pool, or the files of a session named [POOL/]SESSION:[PATH].

    --pool is the one of a session that is named without.
    """
    if target is None:
        sessions = call(context, lambda client: gathered(client.sessions(pool)))
        line = lambda one: f"{one.identifier:32} {one.epoch:>8}  {one.vm_id}  {one.node_id}"  # noqa: E731
        show(context, sessions, f"{'SESSION':32} {'EPOCH':>8}  {'VM':26}  NODE", line)
        return
    remote = remote_of(target if ":" in target else target + ":", pool)
    if remote is None:
        raise click.UsageError(f"{target!r}: [POOL/]SESSION:[PATH] is expected")
    session, path = remote
    files = call(
        context,
        lambda client: gathered(client.session(session.pool, session.identifier).files.list(path, recursive=recursive)),
    )
    show(context, files, f"{'SIZE':>10}  PATH", lambda one: f"{names.human_bytes(one.size_bytes):>10}  {one.path}")


@cli.command()
@click.argument("session")
@click.pass_context
def stop(context: click.Context, session: str) -> None:
    """End a session, named [POOL/]SESSION, and destroy its VM."""
    try:
        name = names.SessionName.parse(session)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    stopped = call(context, lambda client: client.session(name.pool, name.identifier).stop())
    text = "stopped" if stopped else "had ended before"
    say(context, text, pool=name.pool, session=name.identifier, stopped=stopped)


cli.add_command(pool)
for one in installation.COMMANDS:
    cli.add_command(one)


def main() -> None:
    """Entry point."""
    run_command(cli)
