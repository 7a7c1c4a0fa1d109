"""Entry point: `python -m scheduler --config FILE.toml`."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from sandpool.v1 import event_pb2, execution_pb2_grpc, file_pb2_grpc, node_pb2, pool_pb2, session_pb2
from scheduler import metrics
from scheduler.config import SchedulerConfig
from scheduler.execution_service import ExecutionService
from scheduler.file_service import FileService
from scheduler.forward import add_forward
from scheduler.pool_manager import PoolManager
from scheduler.routes import Routes
from service_kit import config, health, health_service, log, pages, rpc, server, telemetry
from service_kit.metrics import reading

# Who says whether sessions can be had.
POOL_MANAGER, ASSIGNMENT = "pool-manager", "sandpool.pool.v1.AssignmentService"

# Of the public API: what the pool-manager serves.
PASSED_ON = (
    pool_pb2.DESCRIPTOR.services_by_name["PoolService"],
    session_pb2.DESCRIPTOR.services_by_name["SessionService"],
    node_pb2.DESCRIPTOR.services_by_name["NodeService"],
    event_pb2.DESCRIPTOR.services_by_name["EventService"],
)


@asynccontextmanager
async def serving(settings: SchedulerConfig) -> AsyncIterator[server.Serving]:
    """Serve the public API until the block ends."""
    async with rpc.open_channel(settings.pool_manager) as upstream:
        routes = Routes(PoolManager(upstream))
        executions, files = ExecutionService(routes), FileService(routes)
        services = {
            "sandpool.v1.ExecutionService": partial(
                execution_pb2_grpc.add_ExecutionServiceServicer_to_server, executions
            ),
            "sandpool.v1.FileService": partial(file_pb2_grpc.add_FileServiceServicer_to_server, files),
        }
        ending = asyncio.Event()
        for service in PASSED_ON:
            services[service.full_name] = partial(add_forward, service, upstream, ending)
        state = health.Health({POOL_MANAGER: services})
        following = asyncio.create_task(health_service.follow(upstream, ASSIGNMENT, state, POOL_MANAGER))
        try:
            async with (
                server.serve(settings.listen, services, state) as it,
                pages.observed(settings.metrics_listen, "scheduler", state),
            ):
                with reading(partial(metrics.read, routes)):
                    try:
                        yield it
                    finally:
                        ending.set()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await routes.close()


async def serve(settings: SchedulerConfig, stopping: asyncio.Event) -> None:
    """Serve until stopping is set, then drain."""
    async with serving(settings) as it:
        server.say_ready("scheduler", it)
        await stopping.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="sandpool-scheduler", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="settings (TOML)")
    arguments = parser.parse_args()
    log.configure("scheduler")
    telemetry.configure("scheduler")
    try:
        settings = config.load(SchedulerConfig, arguments.config)
        server.run(partial(serve, settings))
    except (config.ConfigError, server.ListenRefused, pages.PagesRefused) as error:
        sys.exit(f"sandpool-scheduler: {error}")


if __name__ == "__main__":
    main()
