"""Commands about the installation as a whole: up, doctor, nodes, events, completion."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import ShellComplete, get_completion_class

from sandpool.cli import names
from sandpool.cli.exits import EXIT_CODES
from sandpool.cli.invoke import Command, LocalCommand, call, gathered, pool_names
from sandpool.cli.output import camel, emit, say, show

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.pass_context
def nodes(context: click.Context) -> None:
    """Hosts, and what they run VMs with."""
    from sandpool.enum_names import short_name
    from sandpool.v1 import node_pb2

    def line(node: Any) -> str:
        state = short_name(node_pb2.NodeState.DESCRIPTOR, node.state)
        memory = f"{names.human_bytes(node.reserved.memory_bytes)} of {names.human_bytes(node.capacity.memory_bytes)}"
        return (
            f"{node.node_id:20} {state:12} {node.driver:6} {node.acceleration:10} {node.vms:>4}  {memory}"
            f"\n    {node.acceleration_detail}"
        )

    found = call(context, lambda client: gathered(client.nodes()))
    show(context, found, f"{'NODE':20} {'STATE':12} {'DRIVER':6} {'RUNS ON':10} {'VMS':>4}  MEMORY", line)


@click.command(cls=Command, epilog=EXIT_CODES)
@click.option("-f", "--follow", is_flag=True, help="Go on as they happen, until Ctrl-C.")
@click.option("--pool", default="", help="Only of this pool.", shell_complete=pool_names)
@click.option("--session", default="", help="Only of sessions with this identifier.")
@click.option("--vm", "vm_id", default="", help="Only of this VM.")
@click.option("--node", "node_id", default="", help="Only of this node.")
@click.option("-n", "--limit", type=click.IntRange(0, 100_000), help="The latest so many.  [default: 50]")
@click.option("--after", type=click.IntRange(0, 2**63 - 1), help="Those after this sequence, instead of the latest.")
@click.pass_context
def events(context: click.Context, /, follow: bool, limit: int | None, after: int | None, **chosen: str) -> None:
    """What happened to pools, sessions, VMs and nodes, and why; the newest comes last."""
    from sandpool.cli.events import tell

    call(context, lambda client: tell(client.history, chosen, limit, after, follow, bool(context.obj["json"])))


@click.command(cls=LocalCommand)
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
    colours = {checks.OK: "green", checks.WARN: "yellow", checks.MISSING: "red"}
    for finding in findings:
        if context.obj["json"]:
            emit({camel(name): value for name, value in vars(finding).items()})
            continue
        click.echo(f"{click.style(f'{finding.status:8}', fg=colours[finding.status])}{finding.name:18}{finding.detail}")
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


@click.command(cls=LocalCommand)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """A script that makes SHELL complete commands, options and names of pools.

    bash: eval "$(sandpool completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc;
    fish: sandpool completion fish > ~/.config/fish/completions/sandpool.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(context.find_root().command, {}, "sandpool", "_SANDPOOL_COMPLETE")
    script = ShellComplete.source(made)  # bash's own asks bash for its version, which need not be here
    say(context, script, shell=shell, script=script)


@click.command(cls=LocalCommand, epilog=EXIT_CODES)
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
@click.option(
    "--ready-target",
    type=click.IntRange(0, 1000),
    help="VMs kept warm by the pool 'python'.  [default: 2, or what it is set to already]",
)
@click.option("--default-pool/--no-default-pool", default=True, help="Make the pool 'python' and wait for a VM.")
@click.option("--metrics", default="", help="Serve every service's /metrics and /readyz, e.g. at 127.0.0.1:9464.")
@click.option(
    "--driver",
    type=click.Choice(["auto", "cloud-hypervisor", "qemu", "fake"]),
    default="auto",
    show_default=True,
    help="What runs VMs: auto is cloud-hypervisor where KVM is proven, else qemu; fake isolates nothing.",
)
@click.pass_context
def up(context: click.Context, /, state_dir: Path, cache_dir: Path, driver: str, **rest: Any) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from sandpool.cli.up import Options, run

    as_json = bool(context.obj["json"])
    sys.exit(run(Options(state_dir.absolute(), cache_dir.absolute(), driver=driver, as_json=as_json, **rest)))


COMMANDS = (nodes, events, doctor, completion, up)
