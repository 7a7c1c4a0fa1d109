"""Settings of the scheduler."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerConfig:
    """listen: where clients dial. pool_manager: its address. Both unix:/PATH or 127.0.0.1:PORT."""

    pool_manager: str
    listen: tuple[str, ...] = ("127.0.0.1:7280",)
