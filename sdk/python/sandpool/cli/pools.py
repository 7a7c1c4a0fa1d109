"""`sandpool pool ...`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from sandpool.cli import exits, names
from sandpool.cli.invoke import Group, call, converted, gathered, pool_names
from sandpool.cli.output import as_dict, emit, say, show
from sandpool.cli.progress import Waiting
from sandpool.enum_names import short_name
from sandpool.v1 import pool_pb2

COUNT = click.IntRange(0, 2**32 - 1)
HEADER = f"{'POOL':24} {'STATE':9} {'WARM':>6} {'COMING':>6} {'IN USE':>6} {'WAITING':>7}"
DURATION: Any = {"callback": converted(names.parse_seconds), "metavar": "DURATION"}
SIZE: Any = {"callback": converted(names.parse_bytes), "metavar": "SIZE"}


@click.group(cls=Group)
def pool() -> None:
    """Pools and their settings."""


def settings(command: Any) -> Any:
    """Options of create and update: named as the SDK's settings are."""
    for option in (
        click.option("--max-processes", type=COUNT, help="Of user code, threads included: 16 to 32768."),
        click.option("--disk", "disk_bytes", help="Of a VM: 256M to 1T.", **SIZE),
        click.option("--memory", "memory_bytes", help="Of a VM: 256M to 64G.", **SIZE),
        click.option("--vcpus", type=COUNT, help="Of a VM: 1 to 32."),
        click.option("--image", help="Built-in image that its VMs are made of."),
        click.option(
            "--background-is-activity/--background-is-idle", default=None, help="Whether these keep a session alive."
        ),
        click.option("--max-lifetime", help="Of a session, busy or not: 1s to 30d.", **DURATION),
        click.option("--cooldown", help="Idle time after which a session ends: 1s to 24h.", **DURATION),
        click.option("--max-sessions", type=COUNT, help="At a time: 1 to 100000."),
        click.option("--ready-target", type=COUNT, help="VMs kept warm: 0 to 1000."),
    ):
        command = option(command)
    return command


def waits(command: Any) -> Any:
    """Of the commands that begin something."""
    command = click.option("--wait-timeout", default="10m", show_default=True, help="Of --wait.", **DURATION)(command)
    return click.option("--wait", is_flag=True, help="Until it is done; says what it waits for.")(command)


def name_argument(command: Any) -> Any:
    """NAME, completed by the shell."""
    return click.argument("name", shell_complete=pool_names)(command)


def line(one: pool_pb2.Pool) -> str:
    """For people: counts, then what an operator should see."""
    state = short_name(pool_pb2.PoolState.DESCRIPTOR, one.state)
    counts = one.counts
    numbers = f"{counts.warm:>6} {counts.provisioning:>6} {counts.assigned:>6} {counts.waiting:>7}"
    notes = "".join(f"\n    {condition.reason}: {condition.message}" for condition in one.conditions)
    return f"{one.name:24} {state:9} {numbers}{notes}"


def details(one: pool_pb2.Pool) -> str:
    """For people: all settings, as the options that set them."""
    spec, resources = one.spec, one.spec.resources
    values = {
        "image": spec.template.builtin,
        "ready-target": spec.ready_target,
        "max-sessions": spec.max_sessions,
        "cooldown": names.human_seconds(spec.cooldown.ToNanoseconds() / 1e9),
        "max-lifetime": names.human_seconds(spec.max_lifetime.ToNanoseconds() / 1e9),
        "vcpus": resources.vcpus,
        "memory": names.human_bytes(resources.memory_bytes),
        "disk": names.human_bytes(resources.disk_bytes),
        "max-processes": resources.max_processes,
        "background": "is activity" if spec.background_is_activity else "is idle",
        "generation": f"{one.generation}" + (f" ({one.counts.outdated} older VMs)" if one.counts.outdated else ""),
        "created": one.created_at.ToDatetime().isoformat(" ", "seconds") + " UTC",
    }
    return "\n".join(f"    {name:14} {value}" for name, value in values.items())


def show_one(context: click.Context, found: pool_pb2.Pool, more: bool = False) -> None:
    """One pool."""
    if context.obj["json"]:
        emit(as_dict(found))
    else:
        click.echo(f"{HEADER}\n{line(found)}" + (f"\n{details(found)}" if more else ""))


def finish(context: click.Context, name: str, begin: Any, wait: bool, wait_timeout: float) -> None:
    """Begin something with a pool, wait until it is ready if so asked, and show it."""

    async def work(client: Any) -> pool_pb2.Pool:
        found: pool_pb2.Pool = await begin(client)
        if wait:
            with Waiting() as waiting:
                try:
                    async with asyncio.timeout(wait_timeout):
                        found = await client.pools.until_ready(name, waiting.report)
                except TimeoutError:
                    text = f"{name} is not ready after {names.human_seconds(wait_timeout)}"
                    waiting.give_up(text, bool(context.obj["json"]))
        return found

    show_one(context, call(context, work))


@pool.command()
@name_argument
@settings
@waits
@click.pass_context
def create(context: click.Context, /, name: str, wait: bool, wait_timeout: float, **values: Any) -> None:
    """Make a pool; repeating it with the same settings is fine."""
    finish(context, name, lambda client: client.pools.create(name, **given(values)), wait, wait_timeout)


@pool.command()
@name_argument
@settings
@waits
@click.pass_context
def update(context: click.Context, /, name: str, wait: bool, wait_timeout: float, **values: Any) -> None:
    """Change settings. Sessions keep what they began with; VMs are replaced one by one where they must be."""
    if not given(values):
        raise click.UsageError("nothing to change was given")
    finish(context, name, lambda client: client.pools.update(name, **given(values)), wait, wait_timeout)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were."""
    return {name: value for name, value in values.items() if value is not None}


@pool.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """Every pool."""
    show(context, call(context, lambda client: gathered(client.pools.list())), HEADER, line)


@pool.command()
@name_argument
@click.pass_context
def get(context: click.Context, name: str) -> None:
    """One pool with all its settings."""
    show_one(context, call(context, lambda client: client.pools.get(name)), more=True)


@pool.command()
@name_argument
@click.option("--force", is_flag=True, help="End its sessions.")
@waits
@click.pass_context
def delete(context: click.Context, name: str, force: bool, wait: bool, wait_timeout: float) -> None:
    """No new sessions from now on; the pool is gone with its last VM."""

    async def work(client: Any) -> bool:
        await client.pools.delete(name, force=force)
        if not wait:
            return False
        try:
            async with asyncio.timeout(wait_timeout):
                await client.pools.until_gone(name)
        except TimeoutError:
            text = f"{name} is not gone after {names.human_seconds(wait_timeout)}"
            click.echo(exits.describe_own(text, "WAIT_TIMEOUT", bool(context.obj["json"])), err=True)
            sys.exit(exits.TRY_AGAIN)
        return True

    gone = call(context, work)
    say(context, f"{name} is gone" if gone else f"{name} is being deleted", pool=name, gone=gone)
