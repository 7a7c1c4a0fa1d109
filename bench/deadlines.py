"""The deadline heap with as many sessions as one pool may have; time is simulated."""

from __future__ import annotations

import random
import time
import tracemalloc

from bench.rows import Row
from pool_manager.deadlines import Deadlines

SESSIONS, STEP_SECONDS, COOLDOWN_SECONDS = 100_000, 0.1, 300.0


def expiry() -> Row:
    """Every session is due at its own time, and half of them are used once more before that."""
    chance = random.Random(1)
    tracemalloc.start()
    heap: Deadlines[tuple[str, str]] = Deadlines()
    due: dict[tuple[str, str], float] = {}
    keys = [(f"{number:026d}", "idle") for number in range(SESSIONS)]
    base, _ = tracemalloc.get_traced_memory()
    for key in keys:
        due[key] = chance.uniform(0, COOLDOWN_SECONDS)
        heap.set(key, due[key])
    for key in keys[::2]:
        due[key] += COOLDOWN_SECONDS
        heap.set(key, due[key])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    late, early, now, begun = 0.0, 0, 0.0, time.perf_counter()
    while len(heap):
        now += STEP_SECONDS
        for key in heap.pop(now):
            late = max(late, now - due[key])
            early += due[key] > now
    seconds = time.perf_counter() - begun
    detail = f"{(used - base) / SESSIONS:.0f} bytes a session; {SESSIONS} fired in {seconds:.2f} s of CPU"
    met = late <= 1 and not early
    return Row("expiry", late, "s late", "limit", 1.0, "within 1 s, never early", met, SESSIONS, early, detail)
