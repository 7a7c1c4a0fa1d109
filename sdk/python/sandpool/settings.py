"""The settings of a pool as keywords: Python's numbers instead of messages. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from sandpool.v1 import pool_pb2


class Settings(TypedDict, total=False):
    """Of a pool; what is not given is the service's default, see PoolSpec. Durations: seconds or a timedelta."""

    ready_target: int
    max_sessions: int
    cooldown: float | timedelta
    max_lifetime: float | timedelta
    background_is_activity: bool
    # A built-in image.
    image: str
    vcpus: int
    memory_bytes: int
    disk_bytes: int
    max_processes: int


_PATHS = {
    "image": "template.builtin",
    **{name: f"resources.{name}" for name in ("vcpus", "memory_bytes", "disk_bytes", "max_processes")},
}
_DURATIONS = ("cooldown", "max_lifetime")


def spec_of(settings: Settings, base: pool_pb2.PoolSpec | None = None) -> tuple[pool_pb2.PoolSpec, list[str]]:
    """A copy of base with the settings that were given, and their paths. Raises TypeError for one that there is not."""
    spec, paths = pool_pb2.PoolSpec(), []
    if base is not None:
        spec.CopyFrom(base)
    for name, value in settings.items():
        if name not in Settings.__annotations__:
            raise TypeError(f"there is no setting {name}")
        path = _PATHS.get(name, name)
        *parents, last = path.split(".")
        message = spec
        for parent in parents:
            message = getattr(message, parent)
        if name in _DURATIONS:
            seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)  # type: ignore[arg-type]
            getattr(message, last).FromNanoseconds(round(seconds * 1e9))
        else:
            setattr(message, last, value)
        # An oneof is changed as a whole.
        paths.append("template" if name == "image" else path)
    return spec, paths
