"""The node agent's own calls to guest agents: through the tunnel like everybody else's, with a key of its own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import duration_pb2

from node_agent.vm_record import VmRecord
from sandpool.guest.v1 import guest_pb2 as pb
from sandpool.guest.v1 import guest_pb2_grpc
from service_kit import capability, rpc, telemetry

T = TypeVar("T")

# An emulated template boots and imports its libraries within this.
BOOT_SECONDS = 600.0
# A channel dials with the same permission until somebody answers.
CAPABILITY_SECONDS = 2 * BOOT_SECONDS
PREPARE_SECONDS = 60.0
# A guest that does not answer a Seal within this is UNRESPONSIVE.
SEAL_SECONDS = 10.0
ENTROPY_BYTES = 256
# Of the guest protocol: what can be resumed. Older ones answer as they did before they were frozen.
RESUMABLE_VERSION = 2
# And who can set its clock again. It is late by less than CLOCK_SECONDS, or the VM is of no use.
CLOCK_VERSION = 2
CLOCK_SECONDS, CLOCK_TRIES, CLOCK_CALL_SECONDS = 0.5, 10, 5.0
# A guest has no more to say to its node than a few samples and times.
MAX_ANSWER_BYTES = 4096
# With these a call ends that was not answered at all.
_SILENT = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


class GuestFailed(Exception):
    """The guest agent gave a wrong answer, or none. What it says is hostile: only the status code is kept."""


class GuestSilent(GuestFailed):
    """It gave none."""


class Guests:
    """Calls guest agents by vm id. Each call opens a tunnel of its own: none is on the path of a session."""

    def __init__(self, keys: Path) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._keys = keys
        self.tunnel_address = ""

    def install_key(self) -> None:
        """Let the tunnel know us. The key lives as long as this process."""
        part = self._keys / "node-agent.part"
        part.write_bytes(self._key.public_key().public_bytes_raw())
        part.rename(self._keys / "node-agent.pub")

    @asynccontextmanager
    async def _stub(self, vm_id: str, ready_within: float = 0.0) -> AsyncIterator[guest_pb2_grpc.GuestServiceAsyncStub]:
        """ready_within: be connected first, within so many seconds."""
        token = capability.sign(self._key, vm_id, time.time() + CAPABILITY_SECONDS)
        async with rpc.tunnel_channel(vm_id, self.tunnel_address, token, MAX_ANSWER_BYTES) as channel:
            try:
                if ready_within:
                    async with asyncio.timeout(ready_within):
                        await channel.channel_ready()
                yield guest_pb2_grpc.GuestServiceStub(channel)
            except TimeoutError as error:
                raise GuestSilent("the guest agent cannot be reached") from error
            except grpc.aio.AioRpcError as error:
                kind = GuestSilent if error.code() in _SILENT else GuestFailed
                raise kind(f"the guest agent answered {error.code().name}") from error

    async def quiesce(self, vm_id: str) -> None:
        """Wait for the boot, then get the guest ready to be frozen. Raises GuestFailed."""
        async with self._stub(vm_id) as stub:
            _parsed(await stub.Quiesce(pb.QuiesceRequest(), wait_for_ready=True, timeout=BOOT_SECONDS))

    async def prepare(self, record: VmRecord, resumes_vm_id: str = "") -> bytes:
        """Make a clone unique; returns what its generators answered, to be compared. Raises GuestFailed.

        resumes_vm_id: of a hibernated VM, the name that it had.
        """
        request = pb.PrepareRequest(
            vm_id=record.vm_id,
            entropy=os.urandom(ENTROPY_BYTES),
            machine_id=os.urandom(16).hex(),
            hostname=f"vm-{record.vm_id[-12:]}",
            background_is_activity=record.background_is_activity,
            max_processes=record.max_processes,
            resumes_vm_id=resumes_vm_id,
        )
        async with self._stub(record.vm_id, ready_within=PREPARE_SECONDS) as stub:
            begun = time.monotonic()
            request.now.GetCurrentTime()
            answer = _parsed(
                await stub.Prepare(request, wait_for_ready=True, timeout=PREPARE_SECONDS, metadata=telemetry.outgoing())
            )
            if time.monotonic() - begun > CLOCK_SECONDS and answer.protocol_version >= CLOCK_VERSION:
                await set_clock(stub)
        return proof(request, answer)

    async def seal(self, vm_id: str, only_if_idle_for: duration_pb2.Duration) -> pb.SealResponse:
        """Seal if idle for long enough. Raises GuestFailed."""
        request = pb.SealRequest(only_if_idle_for=only_if_idle_for)
        async with self._stub(vm_id) as stub:
            # A tunnel that is being started again is not the guest's silence.
            return _parsed(await stub.Seal(request, wait_for_ready=True, timeout=SEAL_SECONDS))


async def set_clock(
    stub: guest_pb2_grpc.GuestServiceAsyncStub, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """Until an answer comes soon enough to prove that the clock is right. Raises GuestFailed, AioRpcError."""
    request = pb.SetClockRequest()
    for _ in range(CLOCK_TRIES):
        begun = monotonic()
        request.now.GetCurrentTime()
        _parsed(await stub.SetClock(request, timeout=CLOCK_CALL_SECONDS))
        if monotonic() - begun <= CLOCK_SECONDS:
            return
    raise GuestFailed("the guest is too slow for its clock to be right")


def proof(request: pb.PrepareRequest, answer: pb.PrepareResponse) -> bytes:
    """What no other clone answers. Raises GuestFailed."""
    if request.resumes_vm_id and answer.protocol_version < RESUMABLE_VERSION:
        raise GuestFailed("the guest agent is too old to be resumed: its image must be built again")
    samples = [answer.random_sample, *(answer.worker_samples[name] for name in sorted(answer.worker_samples))]
    if len(samples) < 2 or any(len(sample) != 32 for sample in samples):
        raise GuestFailed("the guest agent proved no randomness of its own")
    return hashlib.sha256(b"".join(samples)).digest()


def _parsed(answer: T | None) -> T:
    """grpcio answers None for bytes that are no such message. Raises GuestFailed."""
    if answer is None:
        raise GuestFailed("the guest agent answered what cannot be parsed")
    return answer
