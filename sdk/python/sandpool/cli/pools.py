"""`sandpool pool ...`."""

from __future__ import annotations

import json
from typing import Any

import click

from sandpool.cli import names
from sandpool.cli.invoke import Group, call, converted, gathered, show, show_one
from sandpool.v1 import pool_pb2

COUNT = click.IntRange(0, 2**32 - 1)
HEADER = f"{'POOL':24} {'STATE':9} {'WARM':>6} {'COMING':>6} {'IN USE':>6} {'WAITING':>7}"


@click.group(cls=Group)
def pool() -> None:
    """Pools and their settings."""


def settings(command: Any) -> Any:
    """Options of create and update."""
    for option in (
        click.option("--max-processes", type=COUNT, help="Of user code, threads included."),
        click.option("--disk", callback=converted(names.parse_bytes), help="Of a VM, e.g. 2GiB."),
        click.option("--memory", callback=converted(names.parse_bytes), help="Of a VM, e.g. 512MiB."),
        click.option("--vcpus", type=COUNT, help="Of a VM: 1 to 32."),
        click.option("--max-lifetime", callback=converted(names.parse_seconds), help="Of a session, e.g. 24h."),
        click.option("--cooldown", callback=converted(names.parse_seconds), help="Idle time of a session, e.g. 5m."),
        click.option("--max-sessions", type=COUNT, help="At a time."),
        click.option("--ready-target", type=COUNT, help="VMs kept warm: 0 to 1000."),
    ):
        command = option(command)
    return command


def spec_of(values: dict[str, Any]) -> tuple[pool_pb2.PoolSpec, list[str]]:
    """The settings that were given, and their paths."""
    spec, paths = pool_pb2.PoolSpec(), []
    resources = {"vcpus": "vcpus", "memory": "memory_bytes", "disk": "disk_bytes", "max_processes": "max_processes"}
    for name, value in values.items():
        if value is None:
            continue
        if name in resources:
            setattr(spec.resources, resources[name], value)
            paths.append(f"resources.{resources[name]}")
        elif name in ("cooldown", "max_lifetime"):
            getattr(spec, name).FromNanoseconds(int(value * 1e9))
            paths.append(name)
        else:
            setattr(spec, name, value)
            paths.append(name)
    return spec, paths


def line(one: pool_pb2.Pool) -> str:
    """For people: counts, then what an operator should see."""
    state = pool_pb2.PoolState.Name(one.state).removeprefix("POOL_STATE_")
    counts = one.counts
    numbers = f"{counts.warm:>6} {counts.provisioning:>6} {counts.assigned:>6} {counts.waiting:>7}"
    notes = "".join(f"\n    {condition.reason}: {condition.message}" for condition in one.conditions)
    return f"{one.name:24} {state:9} {numbers}{notes}"


@pool.command()
@click.argument("name")
@settings
@click.pass_context
def create(context: click.Context, /, name: str, **values: Any) -> None:
    """Make a pool; repeating it with the same settings is fine."""
    spec, _ = spec_of(values)
    show_one(context, call(context, lambda client: client.pools.create(name, spec)), HEADER, line)


@pool.command()
@click.argument("name")
@settings
@click.pass_context
def update(context: click.Context, /, name: str, **values: Any) -> None:
    """Change settings. What VMs are made of changes for new VMs only; sessions stay."""
    spec, paths = spec_of(values)
    if not paths:
        raise click.UsageError("nothing to change was given")
    show_one(context, call(context, lambda client: client.pools.update(name, spec, *paths)), HEADER, line)


@pool.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """Every pool."""
    show(context, call(context, lambda client: gathered(client.pools.list())), HEADER, line)


@pool.command("show")
@click.argument("name")
@click.pass_context
def show_(context: click.Context, name: str) -> None:
    """One pool with all its settings."""
    found = call(context, lambda client: client.pools.get(name))
    show_one(context, found, HEADER, lambda one: f"{line(one)}\n{one.spec}")


@pool.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="End its sessions.")
@click.pass_context
def delete(context: click.Context, name: str, force: bool) -> None:
    """No new sessions from now on; the pool is gone with its last VM."""
    call(context, lambda client: client.pools.delete(name, force=force))
    click.echo(json.dumps({"deleted": name}) if context.obj["json"] else f"{name} is being deleted")
