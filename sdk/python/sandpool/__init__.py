"""sandpool: code in its own microVM, a millisecond away.

>>> from sandpool import Client
>>> with Client() as client:
...     result = client.session("python", "alice").run("print(6 * 7)")
"""

# Lazy: the guest has the generated code under this name and none of the rest.
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandpool.aio import AsyncClient as AsyncClient
    from sandpool.errors import SandpoolError as SandpoolError
    from sandpool.errors import SessionEnded as SessionEnded
    from sandpool.errors import SessionLost as SessionLost
    from sandpool.session import AsyncSession as AsyncSession
    from sandpool.sync import Client as Client
    from sandpool.sync import Session as Session

_HOME = {
    "AsyncClient": "aio",
    "AsyncSession": "session",
    "Client": "sync",
    "SandpoolError": "errors",
    "Session": "sync",
    "SessionEnded": "errors",
    "SessionLost": "errors",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'sandpool' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sandpool.{_HOME[name]}"), name)
