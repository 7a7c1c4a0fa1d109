"""Settings of the pool-manager."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Read once from the file given by --config."""

    # Where schedulers and node agents reach us.
    listen: tuple[str, ...]
    # The SQLite file.
    store: Path
    # The private key that capabilities are signed with; made if it is not there.
    key: Path
    # Where /metrics, /livez and /readyz are served, as unix:PATH or 127.0.0.1:PORT; "" is nowhere.
    metrics_listen: str = ""
