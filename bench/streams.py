"""Bulk output and files through everything, beside a plain gRPC stream through the same tunnel."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.growth import Growth, services
from bench.installation import Installation
from bench.rows import Row
from node_agent.vmm import GUEST_ADDRESS_FILE, GuestAddress
from sandpool import AsyncClient, AsyncSession
from sandpool.events import Ended, Stdout
from sandpool.v1.execution_pb2 import OutputChunk

OUTPUT_BYTES = 100_000_000
FILE_BYTES = 1 << 30
BASELINE_BYTES = 400_000_000
RUNS = 3
MAX_GROWTH_MIB = 32
PLAIN = "bench-plain"


@asynccontextmanager
async def plain(up: Installation) -> AsyncIterator[grpc.aio.Channel]:
    """A gRPC server that only streams, where the tunnel looks for VMs."""
    directory = up.vms / PLAIN
    directory.mkdir()
    socket = directory / "s"
    (directory / GUEST_ADDRESS_FILE).write_text(GuestAddress("unix", (str(socket),)).to_json())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.echo", f"unix:{socket}"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        async with up.tunnel(PLAIN, up.tunnel_address) as channel:
            yield channel
    finally:
        process.terminate()
        await process.wait()
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


async def plain_rate(channel: grpc.aio.Channel) -> float:
    """Bytes per second."""
    stream: Any = channel.unary_stream("/bench.Echo/Stream", response_deserializer=OutputChunk.FromString)
    begun, count = time.perf_counter(), 0
    async for chunk in stream(str(BASELINE_BYTES).encode()):
        count += len(chunk.data)
    return count / (time.perf_counter() - begun)


async def output_rate(session: AsyncSession) -> tuple[float, bool]:
    """Bytes per second of a program's output, and whether all of it came."""
    begun, count, ended = time.perf_counter(), 0, False
    async for event in session.stream_command(["head", "-c", str(OUTPUT_BYTES), "/dev/zero"]):
        if isinstance(event, Stdout):
            count += len(event.data)
        ended |= isinstance(event, Ended)
    return count / (time.perf_counter() - begun), ended and count == OUTPUT_BYTES


async def file_rates(session: AsyncSession, local: Path) -> tuple[float, float, bool]:
    """Bytes per second up and down, and whether all of it arrived; the library checks the sums."""
    begun = time.perf_counter()
    sent = await session.files.upload(local, "big")
    up, begun, count = time.perf_counter() - begun, time.perf_counter(), 0
    async for data in session.files.chunks("big"):
        count += len(data)
    down = time.perf_counter() - begun
    await session.files.remove("big")
    return FILE_BYTES / up, FILE_BYTES / down, sent.size_bytes == count == FILE_BYTES


async def rows(up: Installation, work: Path) -> list[Row]:
    """stream_100mb and file_1gb, on the fake driver."""
    local = work / "big"
    with local.open("wb") as file:
        for _ in range(FILE_BYTES >> 24):
            file.write(os.urandom(1 << 24))
    async with AsyncClient(up.address) as client, plain(up) as channel:
        session = client.session("python", "streams")
        vm_id = (await session.ensure()).vm_id
        await output_rate(session)  # every buffer has been used once
        growth = Growth.begin(services(up, vm_id))
        outputs, plains = [], []
        for _ in range(RUNS):
            plains.append(await plain_rate(channel))
            outputs.append(await output_rate(session))
        grown, who = growth.most()
        growth = Growth.begin(services(up, vm_id))
        sent, received, whole = await file_rates(session, local)
        file_grown, file_who = growth.most()
        await session.stop()
    local.unlink()
    baseline, value = sorted(plains)[1] / 1e6, sorted(rate for rate, _ in outputs)[1] / 1e6
    slower, lost = min(sent, received) / 1e6, sum(not whole for _, whole in outputs)
    name, flat = "plain gRPC stream, same tunnel", f"grown by at most {MAX_GROWTH_MIB} MiB"
    return [
        Row(
            "stream_100mb",
            value,
            "MB/s",
            name,
            baseline,
            f"at least 0.5x, {flat}",
            value >= 0.5 * baseline and grown <= MAX_GROWTH_MIB and not lost,
            RUNS,
            lost,
            f"grown {grown:.1f} MiB ({who})",
        ),
        Row(
            "file_1gb",
            slower,
            "MB/s",
            name,
            baseline,
            f"at least 0.6x both ways, {flat}",
            slower >= 0.6 * baseline and file_grown <= MAX_GROWTH_MIB and whole,
            1,
            int(not whole),
            f"up {sent / 1e6:.0f}, down {received / 1e6:.0f} MB/s; grown {file_grown:.1f} MiB ({file_who})",
        ),
    ]
