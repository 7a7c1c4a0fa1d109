"""How the command line names things: sessions, files in them, durations, sizes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_POOL, DEFAULT_SESSION = "python", "default"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SIZE = re.compile(r"(\d+)\s*(KiB|MiB|GiB|TiB|[KMGT])?(?:B)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, None: 1.0}


@dataclass(frozen=True)
class SessionName:
    """[POOL/]SESSION. An identifier may have slashes itself: then the pool has to be named."""

    pool: str
    identifier: str

    @classmethod
    def parse(cls, text: str, default_pool: str = DEFAULT_POOL) -> SessionName:
        """Raises ValueError."""
        pool, slash, identifier = text.partition("/")
        if not slash:
            pool, identifier = default_pool, text
        if not pool or not identifier:
            raise ValueError(f"{text!r}: [POOL/]SESSION is expected")
        return cls(pool, identifier)


def parse_remote(text: str, default_pool: str = DEFAULT_POOL) -> tuple[SessionName, str] | None:
    """[POOL/]SESSION:PATH; None for a local path (no colon, or it begins with . or /). Raises ValueError."""
    if text.startswith((".", "/")) or ":" not in text:
        return None
    session, _, path = text.partition(":")
    return SessionName.parse(session, default_pool), path


def parse_seconds(text: str) -> float:
    """250ms, 30s, 5m, 2h, 1d; seconds without a unit. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: for example 30s, 5m, 2h")
    return float(match[1]) * _SECONDS[match[2]]


def parse_bytes(text: str) -> int:
    """512MiB, 2GiB; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size: for example 512MiB, 2GiB")
    unit = (match[2] or "").upper()[:1]
    return int(match[1]) << 10 * " KMGT".index(unit or " ")


def human_seconds(seconds: float) -> str:
    """For people, in the largest unit that fits."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def human_bytes(count: int) -> str:
    """For people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
