"""What is due when: a heap with lazy removal. Pure: time comes in, as seconds of any one clock."""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """One deadline per key; setting it again replaces it. O(log n) each."""

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, due: float) -> None:
        """Make key due at due."""
        self._count += 1
        self._due[key] = (due, self._count)
        heapq.heappush(self._heap, (due, self._count, key))
        if len(self._heap) > 64 + 2 * len(self._due):  # mostly replaced entries
            self._heap = [(due, count, key) for key, (due, count) in self._due.items()]
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """Forget key. Idempotent."""
        self._due.pop(key, None)

    def next_due(self) -> float | None:
        """The earliest deadline."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> list[K]:
        """Every key that is due, earliest first; they are forgotten."""
        due = []
        while (first := self.next_due()) is not None and first <= now:
            key = heapq.heappop(self._heap)[2]
            del self._due[key]
            due.append(key)
        return due
