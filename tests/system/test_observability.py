"""What an operator sees of a whole installation: one page of metrics, readiness, traces, and no secret anywhere."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from sandpool import AsyncClient
from sandpool.errors import SandpoolError
from sandpool.pool.v1 import pool_pb2, pool_pb2_grpc
from sandpool.v1 import execution_pb2, session_pb2
from sandpool.v1 import pool_pb2 as public_pool
from service_kit import pages, rpc

from .collector import Collector, Span, collecting
from .conftest import Installation, start, stop

SERVICES = {"scheduler", "pool-manager", "node-agent", "tunnel"}
# Nowhere but in requests, responses and the VM.
SECRET = "Zq7hunter2"
SERVING = health_pb2.HealthCheckResponse.SERVING
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Observed:
    """An installation on the fake driver, its page and its spans."""

    up: Installation
    page: str
    collector: Collector

    async def scrape(self) -> Series:
        """As Prometheus does."""
        answer = await pages.fetch(self.page, "/metrics")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }


def value(series: Series, name: str, **labels: str) -> float:
    """The sum over all series with these labels."""
    wanted = set(labels.items())
    found = [number for (other, having), number in series.items() if other == name and wanted <= having]
    assert found, f"no {name} with {labels}"
    return sum(found)


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    """With all that can be switched on."""
    scratch = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    page = f"unix:{scratch}/page"
    with collecting() as collector, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        up = start("--driver", "fake", "--ready-target", "1", "--metrics", page, "--cache-dir", str(scratch / "cache"))
        try:
            yield Observed(up, page, collector)
        finally:
            stop(up)
            shutil.rmtree(scratch)


async def test_a_scrape_says_what_has_happened_and_what_is(observed: Observed) -> None:
    before = await observed.scrape()
    async with AsyncClient(observed.up.address) as client:
        session = client.session("python")
        assert (await session.run("print('x' * 999)")).ok
        assert not (await session.run("1 / 0")).ok
        await session.files.write("a", b"y" * 5000)
        with pytest.raises(SandpoolError):
            await client.session("nowhere", "a").run("1")
        counts = (await client.pools.get("python")).counts
        after = await observed.scrape()
        await session.stop()

    def more(name: str, **labels: str) -> float:
        known = any(other == name and set(labels.items()) <= having for other, having in before)
        return value(after, name, **labels) - (value(before, name, **labels) if known else 0)

    assert {dict(labels)["service"] for name, labels in after if name == "process_resident_memory_bytes"} == SERVICES
    assert all(value(after, "sandpool_up", service=service) == 1 for service in SERVICES)
    execute = {"service": "scheduler", "rpc_service": "sandpool.v1.ExecutionService", "method": "Execute"}
    assert more("sandpool_rpcs_total", code="OK", **execute) == 2
    assert more("sandpool_rpcs_total", code="NOT_FOUND", **execute) == 1
    assert more("sandpool_rpc_seconds_count", **execute) == 3
    assert more("sandpool_scheduler_executions_ended_total", outcome="exit_zero") == 1
    assert more("sandpool_scheduler_executions_ended_total", outcome="exit_nonzero") == 1
    assert more("sandpool_scheduler_streamed_bytes_total", direction="to_guest") == 5000
    assert more("sandpool_scheduler_streamed_bytes_total", direction="to_client") >= 1000
    assert more("sandpool_scheduler_route_lookups_total", result="hit") == 2
    assert more("sandpool_scheduler_acquire_seconds_count", outcome="failed") == 1
    assert more("sandpool_scheduler_connect_seconds_count", outcome="ok") >= 1
    assert more("sandpool_pool_acquires_total", pool="python") == 1
    assert more("sandpool_tunnel_bytes_total", direction="to_guest") > 5000
    assert more("sandpool_tunnel_connects_total", status="200") >= 1
    assert value(after, "sandpool_scheduler_routes") == value(after, "sandpool_scheduler_channels") >= 1
    assert value(after, "sandpool_pool_sessions", pool="python") == counts.assigned == 1
    assert value(after, "sandpool_pool_vms", pool="python", state="ASSIGNED") == counts.assigned
    assert value(after, "sandpool_pool_ready_target", pool="python") == 1
    assert value(after, "sandpool_nodes", state="READY") == 1
    assert value(after, "sandpool_node_vms") >= counts.assigned
    assert value(after, "sandpool_node_reserved", resource="cpus") >= 1
    assert value(after, "sandpool_node_watchers") == 1
    assert value(after, "sandpool_node_clone_seconds_count", outcome="ok") >= 1
    assert value(after, "sandpool_pool_creations_total", outcome="ready") >= 1
    assert value(after, "sandpool_store_commit_seconds_count") >= 1
    assert not any("nowhere" in value for _, labels in after for _, value in labels)


async def test_the_end_of_a_vm_is_counted_with_its_reason(observed: Observed) -> None:
    async with AsyncClient(observed.up.address) as client:
        await client.session("python", "ends").run("1")
        await client.session("python", "ends").stop()
    assert value(await observed.scrape(), "sandpool_pool_vms_ended_total", pool="python", reason="STOPPED") >= 1


async def until(channel: grpc.aio.Channel, service: str, *wanted: bool) -> None:
    """Until its health has been all of these, in this order."""
    left = list(wanted)
    async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
        if (answer.status == SERVING) == left[0]:
            left.pop(0)
            if not left:
                return


async def kill_and_watch(address: str, service: str, pid: int) -> None:
    """The dependency is lost and comes back, and both are said."""
    async with rpc.open_channel(address) as channel, asyncio.TaskGroup() as tasks:
        there = asyncio.Event()

        async def watch() -> None:
            await until(channel, service, True)
            there.set()
            await until(channel, service, False, True)

        tasks.create_task(watch())
        await there.wait()
        os.kill(pid, signal.SIGKILL)


async def test_a_scheduler_without_pool_manager_is_not_ready(observed: Observed) -> None:
    pid = observed.up.pid_of("-m pool_manager")
    await kill_and_watch(observed.up.address, "sandpool.v1.ExecutionService", pid)


async def test_a_node_without_tunnel_is_not_ready_and_counts_its_return(observed: Observed) -> None:
    before = value(await observed.scrape(), "sandpool_node_tunnel_restarts_total")
    address = f"unix:{observed.up.state_dir}/run/node-agent.sock"
    await kill_and_watch(address, "sandpool.node.v1.NodeAgentService", observed.up.pid_of("-m node_agent.tunnel"))
    assert value(await observed.scrape(), "sandpool_node_tunnel_restarts_total") == before + 1
    ready = await pages.fetch(observed.page, "/readyz")
    body: dict[str, Any] = json.loads(ready.body)
    assert {it["name"] for it in body["dependencies"]} == SERVICES


def whole(spans: list[Span], trace_id: str) -> bool:
    """Whether everything of a cold call is there."""
    names = {(span.service, span.name) for span in spans if span.trace_id == trace_id}
    return names >= {
        ("scheduler", "sandpool.v1.ExecutionService/Execute"),
        ("scheduler", "acquire"),
        ("scheduler", "connect"),
        ("scheduler", "guest"),
        ("scheduler", "guest.run"),
        ("pool-manager", "sandpool.pool.v1.AssignmentService/Acquire"),
        ("pool-manager", "acquire"),
        ("node-agent", "sandpool.node.v1.NodeAgentService/CreateVm"),
        ("node-agent", "clone"),
        ("node-agent", "prepare"),
    }


async def execute_traced(client: AsyncClient, ref: session_pb2.SessionRef) -> str:
    """Run something within a trace of ours; its id."""
    trace_id = os.urandom(16).hex()
    request = execution_pb2.ExecuteRequest(session=ref, code=execution_pb2.Code(source="1"))
    parent = (("traceparent", f"00-{trace_id}-{os.urandom(8).hex()}-01"),)
    assert [it.WhichOneof("event") async for it in client.executions.Execute(request, metadata=parent)][-1] == "ended"
    return trace_id


async def test_a_cold_call_is_one_trace_through_every_service(observed: Observed) -> None:
    async with AsyncClient(observed.up.address) as client:
        await client.pools.create("cold", public_pool.PoolSpec(ready_target=0))
        trace_id = await execute_traced(client, session_pb2.SessionRef(pool="cold", identifier="a"))
        await asyncio.to_thread(observed.collector.wait, lambda spans: whole(spans, trace_id))
        await client.session("cold", "a").stop()
    spans = {span.span_id: span for span in observed.collector.spans if span.trace_id == trace_id}
    create = next(span for span in spans.values() if span.name.endswith("/CreateVm"))
    above = []
    while create.parent_id in spans:
        create = spans[create.parent_id]
        above.append((create.service, create.name.rpartition("/")[2]))
    assert above == [
        ("pool-manager", "acquire"),
        ("pool-manager", "Acquire"),
        ("scheduler", "acquire"),
        ("scheduler", "Execute"),
    ]


async def test_an_execute_says_where_its_time_went(observed: Observed) -> None:
    async with AsyncClient(observed.up.address) as client:
        session = client.session("python", "timed")
        first = await session.run("1")
        again = await session.run("1")
        await session.files.write("a", b"1")
        assert await session.files.read("a") == b"1"
    while not (lines := rpc_lines(observed)) or not lines[-1]["method"].endswith("/Read"):  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # a line comes after its answer
    calls = {line["execution_id"]: line for line in lines if "execution_id" in line}
    cold, warm = calls[first.execution_id], calls[again.execution_id]
    assert {"accept_ms", "check_ms", "acquire_ms", "connect_ms", "guest_ms", "client_ms", "unexplained_ms"} <= set(cold)
    assert {"acquire_ms", "connect_ms"}.isdisjoint(warm)
    for line in (cold, warm):
        stages = [line[name] for name in line if name.endswith("_ms") and name != "duration_ms"]
        assert sum(stages) == pytest.approx(line["duration_ms"], abs=0.01)
    assert {"check_ms", "guest_ms", "client_ms"} <= set(lines[-1])


def rpc_lines(observed: Observed) -> list[dict[str, Any]]:
    """Of the scheduler's log; the last one may be under way."""
    text, _, _ = (observed.up.state_dir / "scheduler.log").read_text().rpartition("\n")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == "rpc"]


async def test_nothing_of_a_session_is_in_logs_spans_or_metrics(observed: Observed) -> None:
    """Code, output, values of env, stdin, contents of files, errors of the program, and permissions to reach a VM."""
    async with AsyncClient(observed.up.address) as client:
        session = client.session("python", "secretive")
        await session.run(f"{SECRET} = '{SECRET}'; print({SECRET})", env={"TOKEN": SECRET})
        await session.run(f"raise ValueError('{SECRET}')")
        await session.exec(["cat"], stdin=SECRET.encode())
        await session.exec(f"echo {SECRET} >&2; exit 3")
        await session.files.write("a", SECRET.encode())
        assert await session.files.read("a") == SECRET.encode()
        with pytest.raises(SandpoolError):
            await session.run("1", env={f"={SECRET}": SECRET})
        with pytest.raises(SandpoolError):
            await session.exec(["x" * 2_000_000 + SECRET])
        trace_id = await execute_traced(client, session_pb2.SessionRef(pool="python", identifier="secretive"))
        # Spans are sent in the order of their ends: all before this one are here with it.
        await asyncio.to_thread(
            observed.collector.wait,
            lambda spans: any(it.trace_id == trace_id and it.name.endswith("/Execute") for it in spans),
        )
    async with rpc.open_channel(f"unix:{observed.up.state_dir}/run/pool-manager.sock") as channel:
        ref = session_pb2.SessionRef(pool="python", identifier="secretive")
        answer = await pool_pb2_grpc.AssignmentServiceStub(channel).Acquire(pool_pb2.AcquireRequest(session=ref))
    token = answer.route.capability
    assert token.startswith("eyJ")
    logs = {path: path.read_bytes() for path in observed.up.state_dir.rglob("*.log")}
    assert {path.stem for path in logs} >= SERVICES and all(logs[path] for path in logs if path.stem == "scheduler")
    seen = [*logs.items(), ("spans", observed.collector.raw)]
    seen.append(("metrics", (await pages.fetch(observed.page, "/metrics")).body))
    # Every permission begins with the same characters: this is any of them, and the other one its signature.
    for secret in (SECRET, token[:12], token.rpartition(".")[2][:24]):
        assert [where for where, data in seen if secret.encode() in data] == []
    for label in (b"secretive", answer.route.vm_id.encode()):
        assert label not in seen[-1][1]
