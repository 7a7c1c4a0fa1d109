"""Unary calls: errors of sandpool, a bound on their time, and repeats where a repeat is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sandpool.errors import Unavailable, broke, lost, mapped

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", covariant=True)
T = TypeVar("T")
# A service that is being started again is back within about this.
REPEAT_AFTER_SECONDS = (0.1, 0.2, 0.4, 0.8)


class Method(Protocol[Q, A]):
    """A unary method of a stub."""

    def __call__(self, request: Q, /, *, timeout: float | None = None) -> Awaitable[A]:
        """Raises AioRpcError."""


async def call(
    method: Method[Q, A], request: Q, timeout: float | None, *, repeatable: bool = True, forwarded: bool = False
) -> A:
    """Call, each time for at most timeout seconds (None: without a bound). Raises SandpoolError.

    While sandpool is unavailable, a repeatable call is repeated; another one only if nothing ran: else it raises
    ConnectionLost. forwarded: the pool-manager serves it, and not a VM.
    """
    for seconds in REPEAT_AFTER_SECONDS:
        try:
            with mapped() if repeatable else mapped_once(forwarded):
                return await method(request, timeout=timeout)
        except Unavailable:
            await asyncio.sleep(seconds)
    with mapped() if repeatable else mapped_once(forwarded):
        return await method(request, timeout=timeout)


@contextmanager
def mapped_once(forwarded: bool = False) -> Iterator[None]:
    """As mapped, for a call that is not to be repeated if it may have run: Unavailable says that nothing did."""
    try:
        with mapped():
            yield
    except Unavailable as error:
        # What the latter leaves open is the pool-manager's part: of a VM's call nothing ran.
        if broke(error) or (forwarded and error.reason == "POOL_MANAGER_LOST"):
            raise lost(error) from error
        raise


async def pages(fetch: Callable[[str], Awaitable[Any]], field: str) -> AsyncIterator[Any]:
    """Every item of a paged list; fetch(page_token) gets a response that has them in field."""
    token = ""
    while True:
        response = await fetch(token)
        for item in getattr(response, field):
            yield item
        token = response.next_page_token
        if not token:
            return
