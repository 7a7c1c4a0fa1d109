"""How commands end: exit codes, and errors with what to do about them."""

from __future__ import annotations

import json

from sandpool.errors import InvalidArgument, NotFound, ResourceExhausted, SandpoolError, Unavailable

# 66, 69, 70 and 75 as in sysexits.h; 128 + N as a shell says it of signal N.
WRONG_USAGE, NOT_FOUND, UNREACHABLE, FAILED, TRY_AGAIN, INTERRUPTED, BROKEN_PIPE = 2, 66, 69, 70, 75, 130, 141
EXIT_CODES = """
Exit codes: of run and exec, the program's own; 1 after an exception, 124 after a timeout, 128+N ended by signal N, 137
killed by sandpool (memory, for example), 130 after Ctrl-C. Of sandpool itself: 2 wrong usage, 66 not found, 69 sandpool
cannot be reached, 75 a later try may succeed, 70 any other error, 141 nobody reads our output. Of doctor: 1 if
something is missing.
"""
# By the reason of the error; else by its class.
REMEDIES = {
    "DISK_FULL": "Remove files (sandpool exec -- rm ...), or use a pool with a larger --disk.",
    "FILE_NOT_FOUND": "`sandpool ls SESSION:` lists its files.",
    "MAX_SESSIONS": "End sessions (`sandpool stop`), or allow more: `sandpool pool update NAME --max-sessions N`.",
    "NODE_UNREACHABLE": "`sandpool nodes` and `sandpool events --node ID` say what became of the node.",
    "NO_CAPACITY": "`sandpool pool get NAME` and `sandpool nodes` say what is missing.",
    "POOL_DELETING": "Its name is free when its last VM is gone: `sandpool pool delete NAME --wait`.",
    "POOL_EXISTS": "`sandpool pool update NAME` changes settings.",
    "POOL_IN_USE": "--force ends its sessions.",
    "POOL_NOT_FOUND": "`sandpool pool list` shows the pools, `sandpool pool create NAME` makes one.",
    "SESSION_LOST": "`sandpool events --session ID` says what became of it. The next call begins a new one.",
    "SESSION_NOT_FOUND": "`sandpool ls --pool POOL` shows the sessions of a pool.",
}
UNREACHABLE_REMEDY = "Is it running (`sandpool up`), and at this address (--address, SANDPOOL_ADDRESS)?"


def exit_code_of(error: SandpoolError) -> int:
    """As EXIT_CODES says."""
    if isinstance(error, ResourceExhausted) and error.retry_after_seconds is not None:
        return TRY_AGAIN
    codes = {InvalidArgument: WRONG_USAGE, NotFound: NOT_FOUND, Unavailable: UNREACHABLE}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)


def remedy_of(error: SandpoolError) -> str:
    """What to do about it, if we know."""
    known = REMEDIES.get(error.reason, UNREACHABLE_REMEDY if isinstance(error, Unavailable) else "")
    if error.retry_after_seconds is not None:
        known = f"{known} Another try may succeed in {error.retry_after_seconds:g} s.".strip()
    return known


def describe(error: SandpoolError, as_json: bool) -> str:
    """For stderr: reason, message and field, then the remedy; or one JSON object."""
    remedy = remedy_of(error)
    if not as_json:
        return f"sandpool: {error}" + (f"\n{remedy}" if remedy else "")
    values = {"reason": error.reason, "code": error.code, "field": error.field, "message": error.message}
    retry = {} if error.retry_after_seconds is None else {"retryAfterSeconds": error.retry_after_seconds}
    return json.dumps({"error": {**values, "remedy": remedy, **retry}})


def describe_own(message: str, reason: str, as_json: bool) -> str:
    """As describe, of a failure of the command itself."""
    return describe(SandpoolError(message, reason=reason), True) if as_json else f"sandpool: {message}"
