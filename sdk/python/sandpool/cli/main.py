"""The command `sandpool`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sandpool")
def cli() -> None:
    """Warm pools of microVMs that run untrusted code."""


@cli.command()
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
@click.option(
    "--listen", default="127.0.0.1:7280", show_default=True, help="Address of the API; port 0 is any free one."
)
@click.option(
    "--ready-target", type=click.IntRange(0, 1000), default=2, show_default=True, help="Warm VMs of the pool."
)
@click.option(
    "--default-pool/--no-default-pool", default=True, help="Make the pool 'python' and wait for its first VM."
)
@click.option("--driver", default="auto", hidden=True)
def up(state_dir: Path, cache_dir: Path, listen: str, ready_target: int, default_pool: bool, driver: str) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from sandpool.cli.up import Options, run

    options = Options(state_dir.absolute(), cache_dir.absolute(), listen, driver, ready_target, default_pool)
    sys.exit(run(options))


def main() -> None:
    """Entry point."""
    cli(prog_name="sandpool")
