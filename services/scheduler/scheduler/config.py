"""Settings of the scheduler."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerConfig:
    """listen: where clients dial. pool_manager: its address. All are unix:/PATH or 127.0.0.1:PORT.

    metrics_listen: where /metrics, /livez and /readyz are served; "" is nowhere.
    """

    pool_manager: str
    listen: tuple[str, ...] = ("127.0.0.1:7280",)
    metrics_listen: str = ""
