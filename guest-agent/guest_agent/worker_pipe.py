"""The worker's end of its two pipes to the agent.

A frame is a byte of kind, four bytes of length (big endian), then the payload. Requests: X (JSON of a cell), S (seed
bytes). Replies: R (JSON of a result, whose `size` raw bytes follow the frame), E (JSON: end of the cell), S (32 random
bytes after reseeding).
"""

import os
import struct
import threading
from collections.abc import Callable


class WorkerPipe:
    """Frames are sent whole: one thread at a time, and not torn by an interrupt."""

    def __init__(self, requests: int, replies: int) -> None:
        self._in = os.fdopen(requests, "rb")
        self._out = replies
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sender = 0
        self._interrupted = False

    def receive(self) -> tuple[str, bytes]:
        """Kind and payload of the next request. Raises EOFError when the agent is gone."""
        head = self._in.read(5)
        if len(head) < 5:
            raise EOFError
        kind, length = struct.unpack(">BI", head)
        return chr(kind), self._in.read(length)

    def send(self, kind: str, payload: bytes, rest: bytes = b"", only_if: Callable[[], bool] = lambda: True) -> None:
        """Write one frame and what follows it. A copy made by fork says nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if only_if():
                self._sender = threading.get_ident()
                self._write(struct.pack(">BI", ord(kind), len(payload)) + payload)
                self._write(rest)
                self._sender = 0
        if self._interrupted and threading.current_thread() is threading.main_thread():
            self._interrupted = False
            if kind == "R":  # the others come outside of a cell
                raise KeyboardInterrupt

    def defer_interrupt(self) -> bool:
        """In the handler of an interrupt: whether the main thread is sending, and will raise it afterwards."""
        self._interrupted = self._sender == threading.get_ident()
        return self._interrupted

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]
