"""Unary calls: errors of sandpool, a bound on their time, and repeats where a repeat is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from sandpool.errors import SandpoolError, Unavailable, mapped

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", covariant=True)
T = TypeVar("T")
# A service that is being started again is back within about this.
REPEAT_AFTER_SECONDS = (0.1, 0.2, 0.4, 0.8)


class Method(Protocol[Q, A]):
    """A unary method of a stub."""

    def __call__(self, request: Q, /, *, timeout: float | None = None) -> Awaitable[A]:
        """Raises AioRpcError."""


async def call(method: Method[Q, A], request: Q, timeout: float | None, *, repeatable: bool = True) -> A:
    """Call, each time for at most timeout seconds (None: without a bound). Raises SandpoolError.

    While sandpool is unavailable, a repeatable call is repeated; another one only if sandpool said that nothing ran.
    """
    for seconds in REPEAT_AFTER_SECONDS:
        try:
            with mapped():
                return await method(request, timeout=timeout)
        except Unavailable as error:
            if not (repeatable or _said_by_sandpool(error)):
                raise
        await asyncio.sleep(seconds)
    with mapped():
        return await method(request, timeout=timeout)


def _said_by_sandpool(error: SandpoolError) -> bool:
    """Whether sandpool itself answered, and no connection broke."""
    return error.reason != error.code


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
