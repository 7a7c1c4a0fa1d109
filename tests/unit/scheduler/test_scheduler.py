"""The scheduler between a stock client and real guest agents: streams, lost sessions, broken tunnels."""

import asyncio
from typing import Any

import grpc
import pytest

from sandpool.guest.v1 import guest_pb2, guest_pb2_grpc
from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import pool_pb2, pool_pb2_grpc, session_pb2

from ..guest_agent.conftest import gather
from .conftest import GuestProcess, World, failure, ref

EndReason = session_pb2.EndReason


async def first_output(call: Any) -> tuple[pb.ExecutionStarted, pb.ExecutionEvent]:
    """Read up to the first output."""
    started = None
    async for event in call:
        if event.HasField("started"):
            started = event.started
        elif event.HasField("output"):
            assert started is not None
            return started, event
    raise AssertionError("no output")


async def seal(guest: GuestProcess) -> None:
    async with grpc.aio.insecure_channel(f"unix:{guest.socket}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: guest_pb2_grpc.GuestServiceAsyncStub = guest_pb2_grpc.GuestServiceStub(channel)
        assert (await stub.Seal(guest_pb2.SealRequest(force=True))).sealed


async def test_an_execution_streams_with_binding_and_timings(world: World) -> None:
    await world.add_guest("vm1")
    events = [event async for event in world.executions.Execute(world.code("print('hello')\n6 * 7"))]
    binding = events[0].started.session
    assert (binding.epoch, binding.created, binding.vm_id) == (1, True, "vm1")
    timings = events[-1].ended.timings
    assert timings.total_us >= timings.acquire_us + timings.connect_us > 0 and timings.guest_run_us > 0
    again = await gather(world.executions.Execute(world.code("print(_ + 1)")))
    assert again.stdout == b"43\n"
    events = [event async for event in world.executions.Execute(world.code("1"))]
    assert events[0].started.session == session_pb2.SessionBinding(epoch=1, vm_id="vm1")
    assert events[-1].ended.timings.acquire_us == 0 == events[-1].ended.timings.connect_us
    assert len(world.fleet.acquires) == 1


async def test_twenty_megabytes_arrive_whole(world: World) -> None:
    await world.add_guest("vm1")
    outcome = await gather(world.executions.Execute(world.shell("head -c 20000000 /dev/zero")))
    assert len(outcome.stdout) == 20_000_000 and not outcome.gaps


async def test_a_client_that_went_away_attaches_where_it_was(world: World) -> None:
    guest = await world.add_guest("vm1")
    call = world.executions.Execute(world.shell("echo one; while [ ! -e go ]; do sleep 0.01; done; echo two"))
    started, event = await first_output(call)
    call.cancel()
    (guest.data / "go").touch()
    attach = pb.AttachRequest(
        session=ref(expected_epoch=started.session.epoch),
        execution_id=started.execution_id,
        position=event.next_position,
    )
    rest = await gather(world.executions.Attach(attach))
    assert rest.stdout == b"two\n" and rest.attached


async def test_a_client_that_does_not_read_and_goes_away_leaves_no_trouble(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.add_guest("vm1")
    for _ in range(3):
        call = world.executions.Execute(world.shell("head -c 100000000 /dev/zero; sleep 60", execution_id="a"))
        await first_output(call)
        call.cancel()
    await world.executions.Cancel(pb.CancelRequest(session=ref(), execution_id="a"))
    outcome = await gather(world.executions.Attach(pb.AttachRequest(session=ref(), execution_id="a")))
    assert outcome.ended is not None and outcome.ended.killed == pb.KILL_REASON_CANCELLED
    assert "Failed to detach context" not in caplog.text


async def test_the_unary_calls_of_an_execution(world: World) -> None:
    await world.add_guest("vm1")
    call = world.executions.Execute(world.shell("cat; sleep 60", execution_id="a", stdin=b"in ", keep_stdin_open=True))
    await first_output(call)
    await world.executions.Input(pb.InputRequest(session=ref(), execution_id="a", data=b"put"))
    got = await world.executions.Get(pb.GetExecutionRequest(session=ref(), execution_id="a"))
    assert got.execution.state == pb.EXECUTION_STATE_RUNNING and got.session.vm_id == "vm1"
    listed = await world.executions.List(pb.ListExecutionsRequest(session=ref()))
    assert [execution.execution_id for execution in listed.executions] == ["a"]
    await world.executions.Signal(pb.SignalRequest(session=ref(), execution_id="a", signal=9))
    ended = [event async for event in call][-1].ended
    assert ended.signal == 9
    cancelled = await world.executions.Cancel(pb.CancelRequest(session=ref(), execution_id="a"))
    assert not cancelled.cancelled and cancelled.session.epoch == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.executions.Get(pb.GetExecutionRequest(session=ref(), execution_id="b"))
    assert failure(caught).reason == "EXECUTION_NOT_FOUND"
    assert "sandpool-reason" not in dict(caught.value.trailing_metadata() or ())


@pytest.mark.parametrize(
    ("reason", "name"),
    [(EndReason.END_REASON_VM_LOST, "END_REASON_VM_LOST"), (99, "99")],
    ids=["known", "of a later pool-manager"],
)
async def test_a_guest_killed_in_mid_stream_is_a_lost_session(
    world: World, reason: EndReason.ValueType, name: str
) -> None:
    guest = await world.add_guest("vm1")
    call = world.executions.Execute(world.shell("echo on; sleep 60"))
    await first_output(call)
    world.fleet.end(world.fleet.of("vm1"), reason)
    assert guest.process is not None
    guest.process.terminate()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(call)
    error = failure(caught)
    assert error.code is grpc.StatusCode.ABORTED and error.reason == "SESSION_LOST"
    assert error.metadata == {"end_reason": name}
    await world.add_guest("vm2")
    events = [event async for event in world.executions.Execute(world.shell("echo again"))]
    binding = events[0].started.session
    assert binding.created and binding.previous.end_reason == reason


async def test_a_tunnel_that_is_restarted_loses_nothing(world: World) -> None:
    guest = await world.add_guest("vm1")
    text = "for i in 1 2 3 4 5; do echo $i; echo e$i >&2; done; while [ ! -e go ]; do sleep 0.01; done; seq 6 2000"
    call = world.executions.Execute(world.shell(text))
    _, event = await first_output(call)
    await world.tunnel.kill()
    world.fleet.tunnel = await world.tunnel.start()
    (guest.data / "go").touch()
    outcome = await gather(call)
    whole = event.output.data * (event.output.stream == pb.OUTPUT_STREAM_STDOUT) + outcome.stdout
    assert whole == b"".join(b"%d\n" % number for number in range(1, 2001))
    assert not outcome.gaps and outcome.execution_id == ""  # started was said once, before the cut
    assert {report.reason for report in world.fleet.reports} == {EndReason.END_REASON_VM_LOST}


async def test_a_sealed_session_is_replaced_without_the_client_noticing(world: World) -> None:
    guest = await world.add_guest("vm1")
    await gather(world.executions.Execute(world.shell("echo one")))
    await seal(guest)
    world.fleet.end(world.fleet.of("vm1"), EndReason.END_REASON_IDLE)
    await world.add_guest("vm2")
    events = [event async for event in world.executions.Execute(world.shell("echo two"))]
    binding = events[0].started.session
    assert (binding.epoch, binding.created, binding.vm_id) == (2, True, "vm2")
    assert (binding.previous.epoch, binding.previous.end_reason) == (1, EndReason.END_REASON_IDLE)


async def test_a_vm_that_is_gone_between_calls_is_replaced(world: World) -> None:
    guest = await world.add_guest("vm1")
    await gather(world.executions.Execute(world.shell("echo one")))
    await guest.stop()
    world.fleet.end(world.fleet.of("vm1"), EndReason.END_REASON_IDLE)
    await world.add_guest("vm2")
    events = [event async for event in world.executions.Execute(world.shell("echo two"))]
    assert events[0].started.session.vm_id == "vm2"


async def test_who_pins_an_epoch_is_told_that_it_ended(world: World) -> None:
    guest = await world.add_guest("vm1")
    await gather(world.executions.Execute(world.shell("echo one")))
    await gather(world.executions.Execute(world.shell("echo one", session=ref(expected_epoch=1))))
    await seal(guest)
    world.fleet.end(world.fleet.of("vm1"), EndReason.END_REASON_IDLE)
    for _ in range(2):  # once refused by the guest, once by the pool-manager
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gather(world.executions.Execute(world.shell("echo two", session=ref(expected_epoch=1))))
        error = failure(caught)
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION and error.reason == "SESSION_ENDED"
        assert error.metadata == {"epoch": "1", "end_reason": "END_REASON_IDLE"}
    await world.add_guest("vm2")
    await gather(world.executions.Execute(world.shell("echo three")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(world.executions.Execute(world.shell("echo four", session=ref(expected_epoch=1))))
    assert failure(caught).reason == "SESSION_ENDED"


async def test_what_does_not_allocate_finds_no_session(world: World) -> None:
    await world.add_guest("vm1")
    existing = ref(allocation=session_pb2.ALLOCATION_EXISTING_ONLY)
    calls: list[Any] = [
        world.executions.Get(pb.GetExecutionRequest(session=ref(), execution_id="a")),
        gather(world.executions.Attach(pb.AttachRequest(session=ref(), execution_id="a"))),
        gather(world.executions.Execute(world.shell("echo", session=existing))),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert failure(caught).reason == "SESSION_NOT_FOUND"


async def test_errors_of_the_pool_manager_arrive_whole(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(world.executions.Execute(world.shell("echo")))
    assert (failure(caught).reason, failure(caught).retry_after_seconds) == ("NO_CAPACITY", 1.0)
    unknown = session_pb2.SessionRef(pool="other", identifier="a")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(world.executions.Execute(world.shell("echo", session=unknown)))
    assert (failure(caught).reason, failure(caught).field) == ("POOL_NOT_FOUND", "session.pool")


async def test_concurrent_first_calls_share_one_acquire(world: World) -> None:
    await world.add_guest("vm1")
    world.fleet.held = asyncio.Event()
    calls = [world.executions.Execute(world.shell("echo $RANDOM")) for _ in range(5)]
    readers = [asyncio.ensure_future(anext(aiter(call))) for call in calls]
    await world.fleet.asked.wait()
    calls[0].cancel()
    world.fleet.held.set()
    with pytest.raises(asyncio.CancelledError):
        await readers[0]
    started = [(await reader).started for reader in readers[1:]]
    assert len(world.fleet.acquires) == 1
    assert sum(one.session.created for one in started) == 1
    for call in calls[1:]:
        call.cancel()


async def test_a_permission_is_renewed_before_it_expires(world: World) -> None:
    await world.add_guest("vm1")
    world.fleet.valid_seconds = 0.0
    for _ in range(3):
        await gather(world.executions.Execute(world.shell("echo")))
    assert len(world.fleet.acquires) == 3


async def test_a_permission_that_a_set_clock_has_ended_is_asked_for_again(world: World) -> None:
    await world.add_guest("vm1")
    world.fleet.expired = 2
    got = await gather(world.executions.Execute(world.shell("echo 1")))
    assert got.stdout == b"1\n" and world.fleet.expired == 0
    assert [report.reason for report in world.fleet.reports] == [session_pb2.END_REASON_VM_LOST] * 2


async def test_the_deadline_of_a_client_ends_its_stream_and_not_the_execution(world: World) -> None:
    guest = await world.add_guest("vm1")
    await gather(world.executions.Execute(world.shell("echo")))  # the way there is open
    request = world.shell("while [ ! -e go ]; do sleep 0.01; done; echo on", execution_id="a")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(world.executions.Execute(request, timeout=0.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (guest.data / "go").touch()
    outcome = await gather(world.executions.Attach(pb.AttachRequest(session=ref(), execution_id="a")))
    assert outcome.stdout == b"on\n"


async def test_a_bad_field_is_named_and_reaches_nobody(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(world.executions.Execute(world.code("x" * 10_000_000)))
    error = failure(caught)
    assert (error.code, error.reason, error.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "code.source",
    )
    assert not world.fleet.acquires


async def test_what_is_not_built_says_so(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(world.executions.Interact(iter(())))  # nothing sent: grpcio loses a status that meets a write
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_of_the_pool_service_are_passed_on(world: World) -> None:
    pools: pool_pb2_grpc.PoolServiceAsyncStub = pool_pb2_grpc.PoolServiceStub(world.channel)
    response = await pools.Get(pool_pb2.GetPoolRequest(name="python"), timeout=5)
    assert response.pool.name == "python"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pools.Get(pool_pb2.GetPoolRequest(name="other"), timeout=5)
    assert (failure(caught).reason, failure(caught).field, failure(caught).metadata) == (
        "POOL_NOT_FOUND",
        "name",
        {"a": "b"},
    )
