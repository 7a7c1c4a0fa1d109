"""Where listeners are: unix:PATH, or host:port."""

import re

_LOOPBACK = re.compile(r"unix:/.+|127\.0\.0\.1:\d+|localhost:\d+|\[::1\]:\d+")


def is_local(address: str) -> bool:
    """Whether a listener there is reachable from this host only: unix:PATH or loopback with a port."""
    return _LOOPBACK.fullmatch(address) is not None
