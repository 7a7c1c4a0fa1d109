"""`sandpool up`: the whole installation on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import grpc
from rich.console import Console

from sandpool.cli.exits import describe_own
from sandpool.cli.output import emit
from sandpool.cli.progress import Waiting
from sandpool.cli.supervisor import Service, StartFailed, Supervisor
from sandpool.v1 import node_pb2, node_pb2_grpc, pool_pb2, pool_pb2_grpc

POLL_SECONDS = 0.2
# A unix socket's path has at most 107 bytes; the longest one is below node/vms/ and the 26 characters of a VM's id.
MAX_STATE_DIR_BYTES = 60
DEFAULT_READY_TARGET = 2
SCHEDULER = "scheduler"
# Each has /metrics, /livez and /readyz on a socket of its own.
WITH_PAGES = ("pool-manager", "node-agent", "tunnel", SCHEDULER)


class CannotRun(Exception):
    """Said to the user as it is."""


@dataclass(frozen=True)
class Options:
    """Of the command line."""

    state_dir: Path
    cache_dir: Path
    listen: str
    driver: str
    # Of the default pool; None: what it has, or DEFAULT_READY_TARGET.
    ready_target: int | None
    default_pool: bool
    # Where the metrics of all services are one page; "" is nowhere: each has its own socket in any case.
    metrics: str = ""
    as_json: bool = False


def services(options: Options) -> list[Service]:
    """In the order of their start."""
    state = options.state_dir
    pool_manager, node_agent = f"unix:{state}/run/pool-manager.sock", f"unix:{state}/run/node-agent.sock"
    pages = {name: f"unix:{state}/run/{name}.metrics" for name in WITH_PAGES}
    children = [
        Service(
            "pool-manager",
            "pool_manager",
            {
                "listen": [pool_manager],
                "store": str(state / "store.db"),
                "key": str(state / "capability.key"),
                "metrics_listen": pages["pool-manager"],
            },
        ),
        Service(
            "node-agent",
            "node_agent",
            {
                "listen": [node_agent],
                "state_dir": str(state / "node"),
                "cache_dir": str(options.cache_dir),
                "pool_manager": pool_manager,
                "driver": options.driver,
                "destroy_on_exit": True,
                "metrics_listen": pages["node-agent"],
                "tunnel_metrics_listen": pages["tunnel"],
            },
            sweep=True,
        ),
        Service(
            SCHEDULER,
            "scheduler",
            {"listen": [options.listen], "pool_manager": pool_manager, "metrics_listen": pages[SCHEDULER]},
        ),
    ]
    if options.metrics:
        sources = [f"{name}={address}" for name, address in pages.items()]
        settings = {"listen": [options.metrics], "sources": sources}
        children.append(Service("metrics", "service_kit.joint_pages", settings))
    return children


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Raises CannotRun with the pid of the one that runs."""
    if len(os.fsencode(state_dir)) > MAX_STATE_DIR_BYTES:
        raise CannotRun(f"{state_dir} is too long for the sockets below it: at most {MAX_STATE_DIR_BYTES} bytes")
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (state_dir / "run").mkdir(mode=0o700, exist_ok=True)
        lock = (state_dir / "lock").open("a+")
    except OSError as error:
        raise CannotRun(f"the state directory cannot be used: {error}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CannotRun(f"sandpool runs already on {state_dir}, as process {file.read().strip()}") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _check_free(listen: str) -> None:
    """Raises CannotRun if somebody answers there: the scheduler would find that out when all else has been started."""
    host, _, port = listen.rpartition(":")
    try:
        if listen.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(listen.removeprefix("unix:"))
        else:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        return
    raise CannotRun(f"{listen} is taken, perhaps by another sandpool: end that, or choose another with --listen")


def run(options: Options) -> int:
    """Until a signal; returns the exit code."""
    console = Console(stderr=True)
    try:
        with _only_one(options.state_dir):
            _check_free(options.listen)
            return asyncio.run(_run(options, console))
    except CannotRun as error:
        _say_failure(error, options, console)
        return 1


def _say_failure(error: Exception, options: Options, console: Console) -> None:
    if options.as_json:
        click.echo(describe_own(str(error), "CANNOT_START", True), err=True)
    else:
        console.print(str(error), style="red", highlight=False, markup=False)


async def _run(options: Options, console: Console) -> int:
    main = asyncio.current_task()
    assert main is not None
    loop = asyncio.get_running_loop()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            main.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)

    def report(text: str) -> None:
        console.print(f"[yellow]{text}", highlight=False)

    children = services(options)
    supervisor = Supervisor(options.state_dir, children, report)
    code = 0
    try:
        await supervisor.start()
        serving = {service.name: service.address for service in children}
        address = serving[SCHEDULER]
        if options.default_pool:
            await _make_pool(address, options.ready_target)
        await _say_what_runs(address, console)
        if options.as_json:
            emit({"ready": True, "address": address})
        else:
            print(f"ready sandpool {address}", flush=True)
        console.print(f"[green]sandpool is ready[/] at {address}. Try:", highlight=False)
        if options.metrics:
            console.print(f"Metrics: http://{serving['metrics']}/metrics", highlight=False)
        console.print("  sandpool run -c 'print(6 * 7)'\nCtrl-C ends everything.", highlight=False)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        console.print("ending every VM and service ...")
    except StartFailed as error:
        _say_failure(error, options, console)
        code = 1
    finally:
        stopping = True
        await supervisor.stop()
        supervisor.close()
    return code


async def _say_what_runs(address: str, console: Console) -> None:
    """Which driver the node has chosen, and why."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = await node_pb2_grpc.NodeServiceStub(channel).List(node_pb2.ListNodesRequest(), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise StartFailed(f"the node cannot be asked what it runs: {error.details()}") from error
    for node in answer.nodes:
        what = f"VMs run on {node.driver} ({node.acceleration}): {node.acceleration_detail}"
        console.print(what, highlight=False, markup=False)


async def _make_pool(address: str, ready_target: int | None) -> None:
    """The pool "python"; of one that is there only ready_target is changed. Returns when its first VM is warm."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = pool_pb2_grpc.PoolServiceStub(channel)
        count = DEFAULT_READY_TARGET if ready_target is None else ready_target
        spec = pool_pb2.PoolSpec(ready_target=count)
        try:
            await stub.Create(pool_pb2.CreatePoolRequest(name="python", spec=spec))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise StartFailed(f"the pool cannot be made: {error.details()}") from error
            if ready_target is not None:
                await _set_ready_target(stub, spec)
        with Waiting() as waiting:
            await _wait_until_warm(stub, waiting.report)


async def _set_ready_target(stub: pool_pb2_grpc.PoolServiceAsyncStub, spec: pool_pb2.PoolSpec) -> None:
    request = pool_pb2.UpdatePoolRequest(name="python", spec=spec)
    request.update_mask.paths.append("ready_target")
    try:
        await stub.Update(request)
    except grpc.aio.AioRpcError as error:
        raise StartFailed(f"the pool cannot be changed: {error.details()}") from error


async def _wait_until_warm(stub: pool_pb2_grpc.PoolServiceAsyncStub, report: Callable[[pool_pb2.Pool], None]) -> None:
    while True:
        try:
            pool = (await stub.Get(pool_pb2.GetPoolRequest(name="python"), wait_for_ready=True)).pool
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # else a service is being started again
                raise StartFailed(f"the pool cannot be read: {error.details()}") from error
            await asyncio.sleep(POLL_SECONDS)
            continue
        if pool.counts.warm or pool.counts.assigned or pool.spec.ready_target == 0:
            return
        report(pool)
        await asyncio.sleep(POLL_SECONDS)
