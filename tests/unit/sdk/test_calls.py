"""A call is repeated where a repeat is safe, and nowhere else; settings and errors are what they say."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from sandpool import calls, errors
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


NOTHING_RAN = said(service_errors.Unavailable("POOL_MANAGER_UNREACHABLE", "the pool-manager cannot be reached"))


class Method:
    """Fails as it is told, then answers."""

    def __init__(self, *failures: AioRpcError) -> None:
        self.failures = list(failures)
        self.timeouts: list[float | None] = []

    async def __call__(self, request: str, /, *, timeout: float | None = None) -> str:
        self.timeouts.append(timeout)
        if self.failures:
            raise self.failures.pop(0)
        return f"answer to {request}"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits."""
    monkeypatch.setattr(calls, "REPEAT_AFTER_SECONDS", (0.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("failure", [BROKEN, NOTHING_RAN])
async def test_a_repeatable_call_is_repeated_each_time_with_its_bound(failure: AioRpcError) -> None:
    method = Method(failure, failure, failure, failure)
    assert await call(method, "x", 7.0) == "answer to x"
    assert method.timeouts == [7.0] * 5
    with pytest.raises(errors.Unavailable):
        await call(Method(*[failure] * 5), "x", None)


async def test_what_may_have_run_is_not_repeated() -> None:
    method = Method(BROKEN)
    with pytest.raises(errors.Unavailable):
        await call(method, "x", 1.0, repeatable=False)
    assert len(method.timeouts) == 1
    method = Method(NOTHING_RAN)  # sandpool says so
    assert await call(method, "x", 1.0, repeatable=False) == "answer to x"


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
