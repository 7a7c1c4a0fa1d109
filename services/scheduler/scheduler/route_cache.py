"""Which routes are kept. Pure: every method decides at once and answers the routes that are to be closed.

A route that is in use is never closed: it is retired, and closed when its last call ends.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Keepable(Protocol):
    """What the cache needs to know of a route."""

    calls: int
    retired: bool
    fresh_until: float


R = TypeVar("R", bound=Keepable)


class RouteCache(Generic[R]):
    """Routes by key, at most capacity of them while that many are idle; the least recently used go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._routes: OrderedDict[Hashable, R] = OrderedDict()

    def __len__(self) -> int:
        return len(self._routes)

    def get(self, key: Hashable, now: float) -> R | None:
        """The route, unless its permission is about to expire."""
        route = self._routes.get(key)
        if route is None or now >= route.fresh_until:
            return None
        self._routes.move_to_end(key)
        return route

    def put(self, key: Hashable, route: R) -> list[R]:
        """Keep a route in place of the one before."""
        old = self._routes.pop(key, None)
        self._routes[key] = route
        closing = self._retire(old) if old is not None else []
        return closing + self._shrink(route)

    def drop(self, key: Hashable, route: R) -> list[R]:
        """Forget a route, unless another has taken its place."""
        if self._routes.get(key) is route:
            del self._routes[key]
        return self._retire(route)

    def clear(self) -> list[R]:
        """Forget every route."""
        routes = list(self._routes.values())
        self._routes.clear()
        return [closing for route in routes for closing in self._retire(route)]

    def begin(self, route: R) -> None:
        """A call uses the route. Every begin is followed by exactly one end."""
        route.calls += 1

    def end(self, route: R) -> list[R]:
        """The call has ended."""
        route.calls -= 1
        return [route] if route.retired and not route.calls else []

    def _retire(self, route: R) -> list[R]:
        if route.retired:
            return []
        route.retired = True
        return [] if route.calls else [route]

    def _shrink(self, newest: R) -> list[R]:
        closing: list[R] = []
        if len(self._routes) > self._capacity:
            idle = [key for key, route in self._routes.items() if not route.calls and route is not newest]
            for key in idle[: len(self._routes) - self._capacity]:
                closing += self._retire(self._routes.pop(key))
        return closing
