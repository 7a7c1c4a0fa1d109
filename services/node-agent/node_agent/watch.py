"""Changes of VMs as a numbered stream for every watcher."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from sandpool.node.v1 import node_pb2 as pb
from service_kit.errors import ResourceExhausted

HEARTBEAT_SECONDS = 1.0
# A watcher this far behind has to begin again with a snapshot.
MAX_BEHIND = 10_000


class Changes:
    """Numbers changes and hands them to watchers. One owner: the node agent's event loop."""

    def __init__(self, heartbeat_seconds: float = HEARTBEAT_SECONDS, max_behind: int = MAX_BEHIND) -> None:
        self._heartbeat_seconds, self._max_behind = heartbeat_seconds, max_behind
        self._sequence = 0
        self._watchers: set[asyncio.Queue[pb.WatchResponse | None]] = set()

    @property
    def watchers(self) -> int:
        """Open streams."""
        return len(self._watchers)

    def publish(self, vm: pb.Vm) -> None:
        """Tell every watcher."""
        self._sequence += 1
        change = pb.WatchResponse(vm=vm, sequence=self._sequence)
        for queue in self._watchers:
            with suppress(asyncio.QueueFull):  # that watcher sees it from the numbers
                queue.put_nowait(change)

    def close(self) -> None:
        """End every stream: the agent stops."""
        for queue in self._watchers:
            if queue.full():  # that watcher has to begin again anyway
                queue.get_nowait()
            queue.put_nowait(None)

    async def watch(
        self, snapshot: Callable[[], pb.NodeSnapshot], heartbeat: Callable[[], pb.Heartbeat]
    ) -> AsyncIterator[pb.WatchResponse]:
        """A snapshot, then every change; heartbeats while there is none. Raises ResourceExhausted when far behind."""
        queue: asyncio.Queue[pb.WatchResponse | None] = asyncio.Queue(self._max_behind)
        self._watchers.add(queue)
        try:
            told = self._sequence
            yield pb.WatchResponse(snapshot=snapshot(), sequence=told)
            while True:
                try:
                    async with asyncio.timeout(self._heartbeat_seconds):
                        change: pb.WatchResponse | None = await queue.get()
                except TimeoutError:
                    if not queue.empty():  # it came just now, and is counted already
                        continue
                    change = pb.WatchResponse(heartbeat=heartbeat(), sequence=self._sequence)
                if change is None:
                    return
                if change.sequence != told + change.HasField("vm"):
                    raise ResourceExhausted("WATCHER_BEHIND", "too many changes at once: watch again")
                told = change.sequence
                yield change
        finally:
            self._watchers.discard(queue)
