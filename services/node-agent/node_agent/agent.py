"""Whether a VM exists: creation, destruction, lifetime and recovery. One owner of all of it: this event loop."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import structlog
from google.protobuf import duration_pb2

from node_agent import metrics
from node_agent.guest import GuestFailed, Guests, GuestSilent
from node_agent.journal import KEPT_GONE, Journal
from node_agent.ledger import Ledger, NodeFull, cost
from node_agent.templates import Templates
from node_agent.vm_record import VmRecord
from node_agent.vmm import CloneFailed, MachineSpec, RunningVm, Vmm
from node_agent.watch import Changes
from sandpool.guest.v1.guest_pb2 import SealResponse
from sandpool.node.v1 import node_pb2 as pb
from sandpool.v1 import session_pb2 as end
from service_kit import boot, enums, failpoint, telemetry
from service_kit.errors import AlreadyExists, FailedPrecondition, Internal, NotFound, ResourceExhausted, Unavailable

log = structlog.get_logger("agent")

# Clones that start at a time. More would only wait for the same CPUs.
CONCURRENT_CLONES = 8
SAMPLES_KEPT = 100_000
# A session that is due is gone within a second: it is asked at most this often whether it may be.
LEAST_REMAINING_SECONDS = 0.1


class Vm:
    """One VM and what goes on with it."""

    def __init__(self, record: VmRecord) -> None:
        self.record = record
        self.running: RunningVm | None = None
        self.creating: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.lifetime: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()


class Agent:
    """Creates and destroys; the service in front of it translates protos."""

    def __init__(self, vmm: Vmm, templates: Templates, guests: Guests, journal: Journal, ledger: Ledger) -> None:
        self._vmm, self._templates, self._guests = vmm, templates, guests
        self._journal, self._ledger = journal, ledger
        self.changes = Changes()
        self._vms: dict[str, Vm] = {}
        self._gone: OrderedDict[str, VmRecord] = OrderedDict()
        self._clones = asyncio.Semaphore(CONCURRENT_CLONES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._samples: OrderedDict[bytes, None] = OrderedDict()

    def records(self) -> list[VmRecord]:
        """Every VM that lives, and the latest that do not."""
        return [*self._gone.values(), *(vm.record for vm in self._vms.values())]

    def living(self) -> Iterator[VmRecord]:
        """Those that exist."""
        return (vm.record for vm in self._vms.values())

    async def recover(self) -> None:
        """Adopt what an earlier agent left and is provably ours and ready; destroy the rest."""
        self._gone = OrderedDict((record.vm_id, record) for record in self._journal.gone())
        for directory, record in list(self._journal.living()):
            running = await self._vmm.recover(directory)
            if record is None:
                if running is not None:
                    await running.destroy()
                self._journal.bury_directory(directory)
                continue
            vm = self._vms[record.vm_id] = Vm(record)
            self._ledger.adopt(record.vm_id, cost(record.vcpus, record.memory_bytes, record.disk_bytes))
            vm.running = running
            if running is not None and _may_go_on(record):
                self._watch_over(vm, running)
                log.info("vm_adopted", vm_id=record.vm_id)
            else:
                await asyncio.shield(self._end(vm, *_lost_while_away(record, running)))

    # -- create ----------------------------------------------------------------------------------------------------

    async def create(self, record: VmRecord) -> VmRecord:
        """Clone, make unique, prove. A repeat waits for the same VM. Creation goes on if the caller leaves."""
        if record.vm_id in self._gone:
            raise FailedPrecondition("VM_DESTROYED", "this vm has lived already")
        vm = self._vms.get(record.vm_id)
        if vm is None and self._closing:
            raise Unavailable("NODE_SHUTDOWN", "this node agent is shutting down")
        if vm is None:
            vm = self._begin(record)
        elif not vm.record.same_request(record):
            raise AlreadyExists("VM_EXISTS", "this vm_id was created by another request")
        if vm.creating is not None:
            await asyncio.wait([vm.creating])
        if vm.ending is not None:  # looked at only now: a creation that fails begins it
            await asyncio.wait([vm.ending])
        if vm.record.state == pb.VM_STATE_DESTROYED:
            raise Internal(_name(vm.record.end_reason), vm.record.detail)
        return vm.record

    def _begin(self, record: VmRecord) -> Vm:
        found = self._templates.find(record.template_id)
        if found is None:
            raise NotFound("TEMPLATE_NOT_FOUND", "this node has no such template: build it", field="template_id")
        try:
            self._ledger.reserve(record.vm_id, cost(record.vcpus, record.memory_bytes, record.disk_bytes))
        except NodeFull as error:
            raise ResourceExhausted("NODE_FULL", str(error)) from error
        vm = self._vms[record.vm_id] = Vm(record)
        try:
            self._set(vm, record)
        except OSError as error:  # nothing of it exists
            del self._vms[record.vm_id]
            self._ledger.release(record.vm_id)
            self._journal.bury_directory(self._journal.directory(record.vm_id))
            raise ResourceExhausted("NODE_FULL", f"the journal cannot be written: {error.strerror}") from error
        failpoint.reach(failpoint.Place.VM_JOURNALED)
        vm.creating = self._own(self._create(vm, found[0]))
        return vm

    async def _create(self, vm: Vm, template: Path) -> None:
        record = vm.record
        machine = MachineSpec(record.vcpus, record.memory_bytes, record.disk_bytes)
        begun = time.perf_counter()
        try:
            async with self._clones:
                with telemetry.stage("clone"), metrics.timed(metrics.CLONE_SECONDS):
                    vm.running = await self._vmm.clone(template, machine, self._journal.directory(record.vm_id))
                failpoint.reach(failpoint.Place.VM_CLONED)
                cloned = time.perf_counter()
                self._watch_over(vm, vm.running)
                with telemetry.stage("prepare"), metrics.timed(metrics.PREPARE_SECONDS):
                    self._check_unique(await self._guests.prepare(record))
            if vm.ending is None:
                self._set(vm, vm.record.become(pb.VM_STATE_READY))
                milliseconds = {"clone_ms": cloned - begun, "prepare_ms": time.perf_counter() - cloned}
                log.info("vm_ready", vm_id=record.vm_id, **{k: round(v * 1000, 1) for k, v in milliseconds.items()})
        except (CloneFailed, OSError) as error:
            self._end(vm, end.END_REASON_CREATE_FAILED, str(error))
        except GuestFailed as error:
            self._end(vm, end.END_REASON_PREPARE_FAILED, str(error))
        except Exception:  # a fault of ours: what is not proven must not live
            self._end(vm, end.END_REASON_CREATE_FAILED, "the node agent failed; see its log")
            raise

    def _check_unique(self, sample: bytes) -> None:
        if sample in self._samples:
            raise GuestFailed("two clones answered the same random numbers")
        self._samples[sample] = None
        if len(self._samples) > SAMPLES_KEPT:
            self._samples.popitem(last=False)

    def _watch_over(self, vm: Vm, running: RunningVm) -> None:
        """End it when its process ends, and when its time is over: the node alone enforces that."""
        self._own(self._wait_for_exit(vm, running))
        left = max(0.0, vm.record.expires_at - boot.boot_seconds())
        loop = asyncio.get_running_loop()
        vm.lifetime = loop.call_later(left, lambda: self._end(vm, end.END_REASON_MAX_LIFETIME, "max_lifetime is over"))

    async def _wait_for_exit(self, vm: Vm, running: RunningVm) -> None:
        detail = await running.exited()
        if vm.ending is None:
            self._end(vm, end.END_REASON_VM_LOST, detail)

    # -- destroy ---------------------------------------------------------------------------------------------------

    async def destroy(
        self, vm_id: str, only_if_idle_for: duration_pb2.Duration | None, reason: end.EndReason.ValueType
    ) -> pb.DestroyVmResponse:
        """At once, or after a Seal that the guest grants; an unknown VM is destroyed."""
        vm = self._vms.get(vm_id)
        if vm is None:
            return pb.DestroyVmResponse(destroyed=True)
        if only_if_idle_for is not None and vm.ending is None:
            answer = await self._seal(vm, only_if_idle_for)
            if answer is not None and vm.ending is None:
                if not answer.sealed:
                    remaining = _bounded(answer.remaining, only_if_idle_for) if answer.HasField("remaining") else None
                    return pb.DestroyVmResponse(destroyed=False, remaining=remaining)
                failpoint.reach(failpoint.Place.VM_SEALED)
                # Recorded, so that an agent that is killed here goes on with it.
                with suppress(OSError):  # a full disk keeps no VM alive
                    self._set(vm, vm.record.become(pb.VM_STATE_SEALED).ending(reason, ""))
                failpoint.reach(failpoint.Place.SEAL_JOURNALED)
        await asyncio.shield(self._end(vm, reason, ""))
        return pb.DestroyVmResponse(destroyed=True)

    async def _seal(self, vm: Vm, only_if_idle_for: duration_pb2.Duration) -> SealResponse | None:
        """The guest's answer; None if the VM ends meanwhile, or is ended because there is no answer."""
        asking = asyncio.ensure_future(self._guests.seal(vm.record.vm_id, only_if_idle_for))
        ended = asyncio.ensure_future(vm.ended.wait())
        try:
            await asyncio.wait([asking, ended], return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
        except GuestSilent as error:
            self._end(vm, end.END_REASON_UNRESPONSIVE, str(error))
        except GuestFailed as error:
            self._end(vm, end.END_REASON_GUEST_PROTOCOL, str(error))
        finally:
            asking.cancel()
            ended.cancel()
        return None

    def _end(self, vm: Vm, reason: end.EndReason.ValueType, detail: str) -> asyncio.Task[None]:
        """Begin to destroy, once: the first reason counts."""
        if vm.ending is None:
            vm.ending = self._own(self._destroy(vm, reason, detail))
            vm.ended.set()
        return vm.ending

    async def _destroy(self, vm: Vm, reason: end.EndReason.ValueType, detail: str) -> None:
        if vm.lifetime is not None:
            vm.lifetime.cancel()
        if vm.creating is not None and not vm.creating.done():
            vm.creating.cancel()
            await asyncio.wait([vm.creating])
        vm.record = vm.record.ending(reason, detail)
        with suppress(OSError):  # as above
            self._journal.write(vm.record)  # so that an agent that is killed here goes on with it
        if vm.running is not None:
            with metrics.timed(metrics.DESTROY_SECONDS):
                await vm.running.destroy()
        failpoint.reach(failpoint.Place.VM_KILLED)
        vm.record = vm.record.become(pb.VM_STATE_DESTROYED)
        await asyncio.to_thread(self._journal.bury, vm.record)
        self._ledger.release(vm.record.vm_id)
        del self._vms[vm.record.vm_id]
        self._gone[vm.record.vm_id] = vm.record
        if len(self._gone) > KEPT_GONE:
            self._journal.forget(self._gone.popitem(last=False)[0])
        self.changes.publish(vm.record.to_proto())
        log.info("vm_destroyed", vm_id=vm.record.vm_id, reason=_name(reason), detail=detail)

    async def destroy_all(self) -> None:
        """The end of an embedded installation."""
        self._closing = True  # the pool-manager would have new ones at once
        endings = [self._end(vm, end.END_REASON_NODE_SHUTDOWN, "") for vm in list(self._vms.values())]
        await asyncio.gather(*endings, return_exceptions=True)

    async def close(self) -> None:
        """Let go of every VM without touching it."""
        for vm in self._vms.values():
            if vm.lifetime is not None:
                vm.lifetime.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- both ------------------------------------------------------------------------------------------------------

    def _set(self, vm: Vm, record: VmRecord) -> None:
        vm.record = record
        self._journal.write(record)
        self.changes.publish(record.to_proto())

    def _own(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed", exc_info=error)


def _name(reason: end.EndReason.ValueType) -> str:
    return enums.name(end.EndReason.DESCRIPTOR, reason).removeprefix("END_REASON_")


def _may_go_on(record: VmRecord) -> bool:
    """Whether it was ready, and its end had not begun."""
    return record.state == pb.VM_STATE_READY and record.end_reason == end.END_REASON_UNSPECIFIED


def _bounded(remaining: duration_pb2.Duration, idle: duration_pb2.Duration) -> duration_pb2.Duration:
    """What a guest says is left, at most all of it, and enough for it not to be asked for ever without a pause."""
    least, most = LEAST_REMAINING_SECONDS, max(LEAST_REMAINING_SECONDS, idle.seconds + idle.nanos / 1e9)
    said = remaining.seconds + remaining.nanos / 1e9
    bounded = duration_pb2.Duration()
    bounded.FromNanoseconds(int(min(max(said, least), most) * 1e9))
    return bounded


def _lost_while_away(record: VmRecord, running: RunningVm | None) -> tuple[end.EndReason.ValueType, str]:
    if record.boot_id != boot.boot_id():
        return end.END_REASON_NODE_REBOOTED, "the host was rebooted"
    if record.end_reason != end.END_REASON_UNSPECIFIED:
        return record.end_reason, record.detail
    if running is None:
        return end.END_REASON_VM_LOST, "the VM ended while the node agent was away"
    return end.END_REASON_CREATE_FAILED, "the node agent ended before the VM was ready"
