"""sandpool.guest.v1.GuestService of the hostile guest: METHOD-WHAT names one thing that it does wrong."""

from __future__ import annotations

import os

from sandpool.guest.v1 import guest_pb2 as pb

from .attacks import ATTACKS
from .execution import UNKNOWN
from .wire import Call


def _prepared(**fields: object) -> pb.PrepareResponse:
    sample = {"random_sample": os.urandom(32), "worker_samples": {"python": os.urandom(32)}}
    return pb.PrepareResponse(**(sample | fields))  # type: ignore[arg-type]


def _busy(seconds: int | None, nanos: int = 0) -> pb.SealResponse:
    response = pb.SealResponse(sealed=False)
    if seconds is not None:
        response.remaining.seconds, response.remaining.nanos = seconds, nanos
    return response


# The honest ones have no entry: they are made in answer().
WRONG: dict[str, pb.PrepareResponse | pb.SealResponse | bytes] = {
    "prepare-no-sample": pb.PrepareResponse(),
    "prepare-short-sample": pb.PrepareResponse(random_sample=b"1", worker_samples={"python": b"1"}),
    "prepare-same": pb.PrepareResponse(random_sample=bytes(32), worker_samples={"python": bytes(32)}),
    "prepare-many": pb.PrepareResponse(
        random_sample=bytes(32), worker_samples={f"{n:01000}": bytes(32) for n in range(1000)}
    ),
    "prepare-unparsable": b"\x0a\x7f\x01",
    "seal-idle": pb.SealResponse(sealed=True, activity=pb.Activity(idle_for={"seconds": 366 * 86_400})),
    "seal-busy": _busy(None),
    "seal-busy-for-ever": _busy(315_576_000_000),
    "seal-busy-never": _busy(-315_576_000_000),
    "seal-busy-nonsense": _busy(1 << 62, -(1 << 31)),
    "seal-unparsable": b"\x0a\x7f\x01",
}

# How long an honest one has been idle, at any time: any cooldown, and not the age of whoever only asks if it lives.
IDLE_FOR_SECONDS = 86_400


class Life:
    """One guest's."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def answer(self, call: Call, method: str) -> None:
        """One call of the node agent."""
        await call.ended.wait()
        concerns, _, what = self.name.partition("-")
        if concerns == method.lower() and what in ATTACKS:
            await ATTACKS[what](call)
        elif concerns == method.lower() and self.name in WRONG:
            await call.answer(WRONG[self.name])
        elif method == "Quiesce":
            await call.answer(pb.QuiesceResponse(protocol_version=1))
        elif method == "Prepare":
            await call.answer(_prepared().SerializeToString() + UNKNOWN)
        elif method == "Seal":
            asked = pb.SealRequest.FromString(call.request).only_if_idle_for.seconds
            await call.answer(pb.SealResponse(sealed=asked < IDLE_FOR_SECONDS))
        else:
            await call.answer(pb.DescribeResponse())
