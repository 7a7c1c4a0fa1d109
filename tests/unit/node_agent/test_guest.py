"""What a guest must answer to be taken for a VM of its own."""

import pytest

from node_agent.guest import CLOCK_SECONDS, CLOCK_TRIES, RESUMABLE_VERSION, GuestFailed, proof, set_clock
from sandpool.guest.v1 import guest_pb2 as pb

CLONE, RESUMED = pb.PrepareRequest(vm_id="v"), pb.PrepareRequest(vm_id="v", resumes_vm_id="v")


def answer(version: int, sample: bytes = b"k" * 32, worker: bytes = b"w" * 32) -> pb.PrepareResponse:
    return pb.PrepareResponse(protocol_version=version, random_sample=sample, worker_samples={"python": worker})


def test_the_samples_tell_clones_apart() -> None:
    assert proof(CLONE, answer(1)) == proof(RESUMED, answer(RESUMABLE_VERSION))
    assert proof(CLONE, answer(1)) != proof(CLONE, answer(1, worker=b"x" * 32))


def test_a_guest_of_an_old_image_is_a_clone_but_cannot_be_resumed() -> None:
    proof(CLONE, answer(RESUMABLE_VERSION - 1))
    with pytest.raises(GuestFailed, match="too old"):
        proof(RESUMED, answer(RESUMABLE_VERSION - 1))


@pytest.mark.parametrize("bad", [answer(2, sample=b""), answer(2, worker=b"w" * 31), pb.PrepareResponse()])
def test_a_guest_without_randomness_is_refused(bad: pb.PrepareResponse) -> None:
    with pytest.raises(GuestFailed, match="randomness"):
        proof(CLONE, bad)


class SlowGuest:
    """Answers SetClock, each time after so many seconds of its own clock."""

    def __init__(self, delays: list[float]) -> None:
        self.seconds, self.delays, self.asked = 0.0, delays, 0

    async def SetClock(  # noqa: N802
        self, request: pb.SetClockRequest, timeout: float
    ) -> pb.SetClockResponse:
        assert request.now.seconds and timeout
        self.seconds += self.delays[self.asked]
        self.asked += 1
        return pb.SetClockResponse()


async def test_a_clock_is_set_until_the_answer_proves_that_it_is_right() -> None:
    guest = SlowGuest([3.0, CLOCK_SECONDS + 0.1, CLOCK_SECONDS - 0.1, 0.0])
    await set_clock(guest, lambda: guest.seconds)  # type: ignore[arg-type]
    assert guest.asked == 3


async def test_a_guest_whose_clock_cannot_be_right_is_of_no_use() -> None:
    guest = SlowGuest([3.0] * CLOCK_TRIES)
    with pytest.raises(GuestFailed, match="too slow"):
        await set_clock(guest, lambda: guest.seconds)  # type: ignore[arg-type]
