"""Which routes are kept, and which are closed when."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from scheduler.route_cache import RouteCache


@dataclass(eq=False)
class Route:
    calls: int = 0
    retired: bool = False
    fresh_until: float = 100.0


def test_the_least_recently_used_idle_route_goes() -> None:
    cache: RouteCache[Route] = RouteCache(2)
    a, b, c = Route(), Route(), Route()
    assert cache.put("a", a) == [] == cache.put("b", b)
    assert cache.get("a", 0) is a
    assert cache.put("c", c) == [b]
    assert cache.get("b", 0) is None and len(cache) == 2


def test_a_route_in_use_is_closed_by_its_last_call() -> None:
    cache: RouteCache[Route] = RouteCache(1)
    route = Route()
    cache.put("a", route)
    cache.begin(route)
    cache.begin(route)
    assert cache.drop("a", route) == [] and route.retired
    assert cache.end(route) == []
    assert cache.end(route) == [route]
    assert cache.drop("a", route) == []


def test_routes_in_use_may_exceed_the_capacity() -> None:
    cache: RouteCache[Route] = RouteCache(1)
    used, new = Route(), Route()
    cache.put("a", used)
    cache.begin(used)
    assert cache.put("b", new) == [] and len(cache) == 2


def test_a_stale_route_is_not_answered_and_a_new_one_replaces_it() -> None:
    cache: RouteCache[Route] = RouteCache(1)
    old, new = Route(fresh_until=10.0), Route()
    cache.put("a", old)
    assert cache.get("a", 9.9) is old and cache.get("a", 10.0) is None
    assert cache.put("a", new) == [old]
    assert cache.drop("a", old) == [] and cache.get("a", 10.0) is new
    assert cache.clear() == [new]


@given(st.lists(st.tuples(st.sampled_from(["put", "drop", "begin", "end"]), st.integers(0, 5)), max_size=60))
def test_a_route_is_closed_once_and_never_in_use(steps: list[tuple[str, int]]) -> None:
    cache: RouteCache[Route] = RouteCache(3)
    made: list[Route] = []
    latest: dict[int, Route] = {}
    closed: list[Route] = []
    for step, key in steps:
        if step == "put":
            latest[key] = Route()
            made.append(latest[key])
            closed += cache.put(key, latest[key])
        elif key in latest and step == "drop":
            closed += cache.drop(key, latest[key])
        elif key in latest and step == "begin" and latest[key] not in closed:
            cache.begin(latest[key])
        elif key in latest and step == "end" and latest[key].calls:
            closed += cache.end(latest[key])
        assert all(not route.calls for route in closed)
    closed += cache.clear()
    for route in made:
        while route.calls:
            closed += cache.end(route)
    assert len(closed) == len(made) == len({id(route) for route in closed})
