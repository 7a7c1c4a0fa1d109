"""Objects of the template that its clones do not write to.

CPython counts references inside of the objects, so whoever only uses a function or a constant copies its page: most of
what a clone copies in its first cells ends with the bytes that it had. PEP 683 has objects that are not counted and
never freed, for this very purpose, and offers no way to say which: so we set the count that says it.
"""

import ctypes
import gc
import itertools
import sys
from collections import deque
from types import CodeType, FunctionType
from typing import Any

# Where a count of 2**32 - 1 in the first half of the first word means immortal.
VERSIONS = ((3, 12), (3, 13))
COUNT_BYTES = 4
AT_ONCE = 1000


def immortalize() -> int:
    """Make every object that exists immortal, and say how many. Other versions of Python go on counting: 0."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in VERSIONS:
        return 0
    tracked = gc.get_objects()
    addresses = set(map(id, tracked))
    for first in range(0, len(tracked), AT_ONCE):
        addresses.update(map(id, gc.get_referents(*tracked[first : first + AT_ONCE])))
    for function in tracked:
        if type(function) is FunctionType:
            addresses.update(map(id, _parts(function.__code__)))
    set_bytes = map(ctypes.memset, addresses, itertools.repeat(0xFF), itertools.repeat(COUNT_BYTES))
    deque(set_bytes, maxlen=0)
    return len(addresses)


def _parts(code: CodeType) -> list[Any]:
    """What running it uses, which the collector does not know."""
    parts: list[Any] = [code, code.co_consts, code.co_names, code.co_name, code.co_qualname, code.co_filename]
    for constant in code.co_consts:
        parts += _parts(constant) if type(constant) is CodeType else [constant]
    return parts
