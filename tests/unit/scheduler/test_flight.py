"""Work that is shared by those who ask for the same at the same time."""

import asyncio

import pytest

from scheduler.flight import Flights


class Work:
    """Ends when told; counts how often it was begun."""

    def __init__(self) -> None:
        self.begun, self.cancelled = 0, False
        self.started, self.answer = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.begun += 1
        self.started.set()
        try:
            return int(await asyncio.shield(self.answer))
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_one_piece_of_work_for_all() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    waiters = [asyncio.ensure_future(flights.join("a", work)) for _ in range(3)]
    await work.started.wait()
    assert "a" in flights and "b" not in flights
    work.answer.set_result(7)
    assert await asyncio.gather(*waiters) == [7, 7, 7]
    assert work.begun == 1 and "a" not in flights
    assert await flights.join("a", work) == 7 and work.begun == 2


async def test_a_cancelled_waiter_leaves_the_others_alone() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    first, second = (asyncio.ensure_future(flights.join("a", work)) for _ in range(2))
    await work.started.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.answer.set_result(7)
    assert await second == 7 and not work.cancelled


async def test_the_last_waiter_takes_the_work_along() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    waiter = asyncio.ensure_future(flights.join("a", work))
    await work.started.wait()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert "a" not in flights
    again = asyncio.ensure_future(flights.join("a", work))
    work.answer.set_result(7)
    assert await again == 7 and work.begun == 2 and work.cancelled


async def test_an_error_reaches_every_waiter() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    waiters = [asyncio.ensure_future(flights.join("a", work)) for _ in range(2)]
    await work.started.wait()
    work.answer.set_exception(ValueError("no"))
    answers = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError]
