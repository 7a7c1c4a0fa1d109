"""A call is repeated where a repeat is safe, and nowhere else; settings and errors are what they say."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from sandpool import AsyncClient, calls, errors
from sandpool.calls import call
from sandpool.settings import Settings, spec_of
from sandpool.v1 import pool_pb2
from service_kit import errors as service_errors

BROKEN = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="connection reset")


def said(error: service_errors.SandpoolError) -> AioRpcError:
    """As it comes over the wire."""
    status = service_errors.to_status(error)
    trailers = Metadata(*((str(key), value) for key, value in status.trailing_metadata))
    return AioRpcError(status.code, Metadata(), trailers, details=status.details)


NOTHING_RAN = said(service_errors.Unavailable("SESSION_UNREACHABLE", "no connection to its VM could be opened"))
NO_POOL_MANAGER = said(service_errors.Unavailable("POOL_MANAGER_UNREACHABLE", "the pool-manager cannot be reached"))
# Of a call that the pool-manager serves, this leaves it open.
LOST = said(service_errors.Unavailable("POOL_MANAGER_LOST", "the connection to the pool-manager broke under the call"))


class Method:
    """Fails as it is told, then answers."""

    def __init__(self, *failures: AioRpcError, answer: Any = "answer") -> None:
        self.failures, self.answer = list(failures), answer
        self.timeouts: list[float | None] = []

    async def __call__(self, request: Any, /, *, timeout: float | None = None) -> Any:
        self.timeouts.append(timeout)
        if self.failures:
            raise self.failures.pop(0)
        return self.answer


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits."""
    monkeypatch.setattr(calls, "REPEAT_AFTER_SECONDS", (0.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("failure", [BROKEN, NOTHING_RAN, NO_POOL_MANAGER, LOST])
async def test_a_repeatable_call_is_repeated_each_time_with_its_bound(failure: AioRpcError) -> None:
    method = Method(failure, failure, failure, failure)
    assert await call(method, "x", 7.0, forwarded=True) == "answer"
    assert method.timeouts == [7.0] * 5
    with pytest.raises(errors.Unavailable):
        await call(Method(*[failure] * 5), "x", None)


@pytest.mark.parametrize(("failure", "forwarded"), [(BROKEN, False), (BROKEN, True), (LOST, True)])
async def test_what_may_have_run_is_not_repeated(failure: AioRpcError, forwarded: bool) -> None:
    method = Method(failure)
    with pytest.raises(errors.ConnectionLost):
        await call(method, "x", 1.0, repeatable=False, forwarded=forwarded)
    assert len(method.timeouts) == 1


@pytest.mark.parametrize(
    ("failure", "forwarded"),
    [(NOTHING_RAN, False), (NOTHING_RAN, True), (NO_POOL_MANAGER, False), (NO_POOL_MANAGER, True), (LOST, False)],
)
async def test_what_did_not_run_is_repeated(failure: AioRpcError, forwarded: bool) -> None:
    method = Method(failure)
    assert await call(method, "x", 1.0, repeatable=False, forwarded=forwarded) == "answer"
    with pytest.raises(errors.Unavailable):
        await call(Method(*[failure] * 5), "x", None, repeatable=False, forwarded=forwarded)


async def test_where_nobody_is_nothing_ran(directory: Path) -> None:
    for address in (f"unix:{directory / 'nobody'}", "127.0.0.1:1", "nowhere.invalid:80"):
        async with AsyncClient(address) as client:
            with pytest.raises(errors.Unavailable):
                await client.session().files.remove("x")
            with pytest.raises(errors.Unavailable):
                await client.session().write("x", b"y")


@pytest.mark.parametrize("failure", [BROKEN, LOST])
async def test_a_change_of_a_pool_that_may_be_done_is_not_taken_for_a_foreign_one(failure: AioRpcError) -> None:
    async with AsyncClient("unix:/nowhere") as client:
        stub: Any = SimpleNamespace(Update=Method(failure, said(service_errors.Aborted("GENERATION_CHANGED", "m"))))
        client.pools._stub = stub
        with pytest.raises(errors.ConnectionLost):
            await client.pools.update("p", vcpus=2, expected_generation=1)


@pytest.mark.parametrize("failure", [BROKEN, LOST])
async def test_a_pool_that_is_gone_after_a_first_try_is_deleted(failure: AioRpcError) -> None:
    gone = said(service_errors.NotFound("POOL_NOT_FOUND", "m"))
    async with AsyncClient("unix:/nowhere") as client:
        stub: Any = SimpleNamespace(Delete=Method(failure, LOST, gone))
        client.pools._stub = stub
        await client.pools.delete("p")
        stub.Delete = Method(NOTHING_RAN, gone)
        with pytest.raises(errors.PoolNotFound):
            await client.pools.delete("p")


@pytest.mark.parametrize("failure", [BROKEN, LOST])
async def test_a_stop_is_repeated_of_a_known_session_only(failure: AioRpcError) -> None:
    async with AsyncClient("unix:/nowhere") as client:
        stop = Method(failure, answer=SimpleNamespace(stopped=True))
        stub: Any = SimpleNamespace(Stop=stop)
        client.sessions_stub = stub
        known = client.session("p", "a")
        known.epoch = 7
        assert await known.stop() and len(stop.timeouts) == 2
        for session in (client.session("p", "a"), client.session("p", "a", pin=False)):
            stop.failures, stop.timeouts = [failure], []
            with pytest.raises(errors.ConnectionLost):
                await session.stop()
            assert len(stop.timeouts) == 1


@pytest.mark.parametrize("kind", [service_errors.Aborted, service_errors.DeadlineExceeded, service_errors.Internal])
async def test_no_other_error_is_repeated(kind: type[service_errors.SandpoolError]) -> None:
    method = Method(said(kind("X", "y")))
    with pytest.raises(errors.SandpoolError):
        await call(method, "x", None)
    assert len(method.timeouts) == 1


@pytest.mark.parametrize(
    ("error", "kind", "base"),
    [
        (service_errors.NotFound("POOL_NOT_FOUND", "m"), errors.PoolNotFound, errors.NotFound),
        (service_errors.NotFound("FILE_NOT_FOUND", "m"), errors.FileNotFound, errors.NotFound),
        (service_errors.FailedPrecondition("POOL_IN_USE", "m"), errors.PoolInUse, errors.FailedPrecondition),
        (service_errors.ResourceExhausted("MAX_SESSIONS", "m"), errors.MaxSessions, errors.ResourceExhausted),
        (service_errors.ResourceExhausted("NO_CAPACITY", "m"), errors.NoCapacity, errors.ResourceExhausted),
        (service_errors.Aborted("CONNECTION_LOST", "m"), errors.ConnectionLost, errors.Aborted),
        (service_errors.Aborted("GENERATION_CHANGED", "m"), errors.PoolChanged, errors.Aborted),
        (service_errors.NotFound("SOMETHING_NEW", "m"), errors.NotFound, errors.SandpoolError),
    ],
)
def test_every_reason_has_its_class(
    error: service_errors.SandpoolError, kind: type[Exception], base: type[Exception]
) -> None:
    made = errors.from_grpc(said(error))
    assert type(made) is kind and isinstance(made, base) and made.reason == error.reason


def test_every_class_of_a_reason_is_of_the_code_that_the_reason_has() -> None:
    for reason, kind in errors._BY_REASON.items():
        assert kind.__doc__ and issubclass(kind, errors.SandpoolError), reason
        assert kind.__mro__[1] is not errors.SandpoolError or reason == "SESSION_LOST"


def test_settings_become_a_spec_and_its_paths() -> None:
    settings: Settings = {
        "ready_target": 0,
        "cooldown": 0.5,
        "max_lifetime": timedelta(hours=2),
        "memory_bytes": 1 << 30,
        "image": "python",
        "background_is_activity": False,
    }
    spec, paths = spec_of(settings, pool_pb2.PoolSpec(max_sessions=3))
    assert paths == [
        "ready_target",
        "cooldown",
        "max_lifetime",
        "resources.memory_bytes",
        "template",
        "background_is_activity",
    ]
    assert (spec.HasField("ready_target"), spec.cooldown.nanos, spec.max_lifetime.seconds) == (True, 500_000_000, 7200)
    assert (spec.resources.memory_bytes, spec.template.builtin, spec.max_sessions) == (1 << 30, "python", 3)


def test_a_setting_that_there_is_not_is_named() -> None:
    wrong: Any = {"redy_target": 1}
    with pytest.raises(TypeError, match="redy_target"):
        spec_of(wrong)
