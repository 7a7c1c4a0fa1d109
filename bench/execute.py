"""Executions on a known session: through scheduler and tunnel, and straight to the guest agent, in turn."""

from __future__ import annotations

import asyncio
import json
import time

import grpc

from bench.installation import Installation, code, execute
from bench.rows import Row, p50
from sandpool.v1 import execution_pb2_grpc, session_pb2
from service_kit import rpc

CALLS, CELLS = 300, 300
WARM_UP = 20


async def compare(through: grpc.aio.Channel, direct: grpc.aio.Channel, calls: int) -> tuple[list[float], list[float]]:
    """Seconds through the scheduler and straight; alternating, after a warm-up."""
    ref = session_pb2.SessionRef(pool="python", identifier="bench")
    whole, straight = [], []
    for number in range(WARM_UP + calls):
        request = code("1")
        request.session.CopyFrom(ref)
        seconds, _ = await execute(through, request)
        other, _ = await execute(direct, code("1"))
        if number >= WARM_UP:
            whole.append(seconds)
            straight.append(other)
    return whole, straight


async def own_cells(direct: grpc.aio.Channel) -> list[float]:
    """Seconds of cells by the guest agent's own count: one after the other, as those of ipykernel_cells."""
    ends = [(await execute(direct, code("1")))[1] for _ in range(WARM_UP + CELLS)]
    return [ended.timings.guest_run_us / 1e6 for ended in ends[WARM_UP:]]


async def open_session(channel: grpc.aio.Channel) -> str:
    """The vm of the session "bench"."""
    request = code("1")
    request.session.CopyFrom(session_pb2.SessionRef(pool="python", identifier="bench"))
    vm_id = ""
    async for event in execution_pb2_grpc.ExecutionServiceStub(channel).Execute(request):
        if event.HasField("started"):
            vm_id = event.started.session.vm_id
    return vm_id


async def native(up: Installation) -> list[Row]:
    """execute_native and cell, on the fake driver."""
    async with rpc.open_channel(up.address) as through:
        vm_id = await open_session(through)
        path = json.loads((up.vms / vm_id / "guest.json").read_text())["paths"][0]
        async with rpc.open_channel(f"unix:{path}") as direct:
            whole, straight = await compare(through, direct, CALLS)
            inside = await own_cells(direct)
    kernel = await asyncio.to_thread(ipykernel_cells)
    value, baseline = p50(whole), p50(straight)
    cell, other = p50(inside), p50(kernel)
    met = cell <= 0.5 and other >= 8 * cell
    return [
        Row(
            "execute_native",
            value,
            "ms",
            "straight to the agent",
            baseline,
            "at most 2.2x",
            value <= 2.2 * baseline,
            CALLS,
            0,
        ),
        Row("cell", cell, "ms", "ipykernel", other, "at most 0.5 ms and 8x faster", met, CALLS, 0),
    ]


async def emulated(up: Installation) -> Row:
    """execute_emulated, on a QEMU VM; the baseline goes through the same tunnel."""
    async with rpc.open_channel(up.address) as through:
        vm_id = await open_session(through)
        async with up.tunnel(vm_id, up.tunnel_address) as direct:
            whole, straight = await compare(through, direct, CALLS // 3)
    value, baseline = p50(whole), p50(straight)
    name = "tunnel, without scheduler"
    return Row("execute_emulated", value, "ms", name, baseline, "at most 1.3x", value <= 1.3 * baseline, CALLS // 3, 0)


def ipykernel_cells() -> list[float]:
    """Seconds from execute to reply, of a kernel that does the same."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    times = []
    try:
        for number in range(WARM_UP + CELLS):
            begun = time.perf_counter()
            client.execute_interactive("1", output_hook=lambda _: None)
            if number >= WARM_UP:
                times.append(time.perf_counter() - begun)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return times
