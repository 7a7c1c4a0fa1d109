"""The command `sandpool`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sandpool.cli import names
from sandpool.cli.invoke import EXIT_CODES, Group, as_dict, call, converted, gathered, show
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
        click.option("--pool", default=names.DEFAULT_POOL, show_default=True, help="Where a new session comes from."),
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
    """Run Python code in a session; its state is kept for the next run."""
    if (file is None) == (code is None):
        raise click.UsageError("either FILE or -c CODE")
    source = code if code is not None else file.read()
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


@cli.command()
@click.argument("source")
@click.argument("destination")
@click.pass_context
def cp(context: click.Context, source: str, destination: str) -> None:
    """Copy a file to or from a session, named [POOL/]SESSION:PATH."""
    from sandpool.cli.files import copy

    try:
        there, here = names.parse_remote(destination), names.parse_remote(source)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if (there is None) == (here is None):
        raise click.UsageError("one of the two is a local path, the other [POOL/]SESSION:PATH")
    copied = call(context, lambda client: copy(client, source, destination, here, there))
    if context.obj["json"]:
        click.echo(json.dumps(as_dict(copied), indent=2))


@cli.command()
@click.argument("target", required=False)
@click.option("--pool", default=names.DEFAULT_POOL, show_default=True)
@click.option("-r", "--recursive", is_flag=True)
@click.pass_context
def ls(context: click.Context, target: str | None, pool: str, recursive: bool) -> None:
    """The sessions of a pool, or the files of a session named [POOL/]SESSION:[PATH]."""
    if target is None:
        sessions = call(context, lambda client: gathered(client.sessions(pool)))
        line = lambda one: f"{one.identifier:32} {one.epoch:>8}  {one.vm_id}  {one.node_id}"  # noqa: E731
        show(context, sessions, f"{'SESSION':32} {'EPOCH':>8}  {'VM':26}  NODE", line)
        return
    try:
        remote = names.parse_remote(target if ":" in target else target + ":")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
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
    click.echo(
        json.dumps({"stopped": stopped}) if context.obj["json"] else "stopped" if stopped else "had ended before"
    )


@cli.command()
@click.pass_context
def nodes(context: click.Context) -> None:
    """Hosts, and what they run VMs with."""
    from sandpool.v1 import node_pb2

    def line(node: Any) -> str:
        state = node_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_")
        memory = f"{names.human_bytes(node.reserved.memory_bytes)} of {names.human_bytes(node.capacity.memory_bytes)}"
        return (
            f"{node.node_id:20} {state:12} {node.driver:6} {node.acceleration:10} {node.vms:>4}  {memory}"
            f"\n    {node.acceleration_detail}"
        )

    found = call(context, lambda client: gathered(client.nodes()))
    show(context, found, f"{'NODE':20} {'STATE':12} {'DRIVER':6} {'RUNS ON':10} {'VMS':>4}  MEMORY", line)


@cli.command()
@click.option(
    "--fix", is_flag=True, help="Download Cloud Hypervisor into ~/.cache/sandpool/bin before it is looked for."
)
@click.option(
    "--source",
    envvar="SANDPOOL_CLOUD_HYPERVISOR_SOURCE",
    help="Where --fix finds the file, instead of the project's own release.",
)
@click.pass_context
def doctor(context: click.Context, fix: bool, source: str | None) -> None:
    """What this host can do, why, and what to do about the rest."""
    from sandpool.cli import doctor as checks

    if fix:
        _download(source)
    findings = checks.examine()
    if context.obj["json"]:
        click.echo(json.dumps(checks.as_json(findings), indent=2))
    else:
        colours = {checks.OK: "green", checks.WARN: "yellow", checks.MISSING: "red"}
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.status:8}', fg=colours[finding.status])}{finding.name:18}{finding.detail}"
            )
            if finding.remedy:
                click.echo(f"{'':26}do: {finding.remedy}")
            if finding.instead:
                click.echo(f"{'':26}until then: {finding.instead}")
    sys.exit(1 if any(finding.status == checks.MISSING for finding in findings) else 0)


def _download(source: str | None) -> None:
    from sandpool.cli import download, releases

    try:
        download.cloud_hypervisor(source or releases.SOURCE, download.TARGET, download.show)
    except (download.DownloadFailed, OSError) as error:
        raise click.ClickException(str(error)) from error


@cli.command(cls=click.Command)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "sandpool",
    help="Where pools, sessions and logs are kept.  [default: ~/.local/share/sandpool]",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: Path.home() / ".cache" / "sandpool",
    help="Where images and templates are kept.  [default: ~/.cache/sandpool]",
)
@click.option("--listen", default="127.0.0.1:7280", show_default=True, help="Of the API; port 0 is any free one.")
@click.option("--ready-target", type=click.IntRange(0, 1000), default=2, show_default=True, help="VMs kept warm.")
@click.option("--default-pool/--no-default-pool", default=True, help="Make the pool 'python' and wait for a VM.")
@click.option("--metrics", default="", help="Serve every service's /metrics and /readyz, e.g. at 127.0.0.1:9464.")
@click.option("--driver", default="auto", hidden=True)
def up(
    state_dir: Path, cache_dir: Path, listen: str, ready_target: int, default_pool: bool, metrics: str, driver: str
) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from sandpool.cli.up import Options, run

    options = Options(state_dir.absolute(), cache_dir.absolute(), listen, driver, ready_target, default_pool, metrics)
    sys.exit(run(options))


cli.add_command(pool)


def main() -> None:
    """Entry point."""
    cli(prog_name="sandpool")
