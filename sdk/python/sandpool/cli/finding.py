"""What `sandpool doctor` has to say about one thing, and where sandpool keeps what it looks at."""

from dataclasses import dataclass
from pathlib import Path

OK, WARN, MISSING = "ok", "warn", "missing"
CACHE = Path.home() / ".cache" / "sandpool"


@dataclass(frozen=True)
class Finding:
    """One line: remedy is empty when all is well; instead says what is used as long as it is not."""

    name: str
    status: str
    detail: str
    remedy: str = ""
    instead: str = ""
