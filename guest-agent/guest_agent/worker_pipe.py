"""The worker's end of its two pipes to the agent.

A frame is a byte of kind, four bytes of length (big endian), then the payload. Requests: X (JSON of a cell), S (seed
bytes). Replies: R (JSON of a result, whose `size` raw bytes follow the frame), E (JSON: end of the cell), S (32 random
bytes after reseeding).

A cell that runs takes a seed too: SEED_SIGNAL says that one is in the pipe.
"""

import os
import select
import signal
import struct
import threading
from collections.abc import Callable

# Ignored by whatever a cell starts, and by a cell that has taken our handler away.
SEED_SIGNAL = signal.SIGURG


class WorkerPipe:
    """Frames are sent whole: one thread at a time, and not torn by an interrupt."""

    def __init__(self, requests: int, replies: int) -> None:
        self._in = requests
        self._out = replies
        self._received = bytearray()
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a handler may send while its own thread has it, outside of a frame
        self._sender = 0
        self._afterwards: list[Callable[[], None]] = []
        self._interrupted = False

    def receive(self) -> tuple[str, bytes]:
        """Kind and payload of the next request. Raises EOFError when the agent is gone.

        What a signal's handler raises goes through; then it is called again, and goes on where it was.
        """
        self._fill(5)
        kind, length = struct.unpack_from(">BI", self._received)
        self._fill(5 + length)
        payload = bytes(self._received[5:])
        self._received.clear()
        return chr(kind), payload

    def has_request(self) -> bool:
        """Whether receive() has something to read at once."""
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        return bool(poll.poll(0))

    def _fill(self, size: int) -> None:
        """Not a byte more: has_request() knows only what is still in the pipe."""
        while len(self._received) < size:
            data = os.read(self._in, size - len(self._received))
            if not data:
                raise EOFError
            self._received += data

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
        while self._afterwards and threading.current_thread() is threading.main_thread():
            self._afterwards.pop()()
        if self._interrupted and threading.current_thread() is threading.main_thread():
            self._interrupted = False
            if kind == "R":  # the others come outside of a cell
                raise KeyboardInterrupt

    def defer_interrupt(self) -> bool:
        """In the handler of an interrupt: whether the main thread is sending, and will raise it afterwards."""
        self._interrupted = self._sender == threading.get_ident()
        return self._interrupted

    def defer(self, handler: Callable[[], None]) -> bool:
        """In a handler that sends: whether the main thread is sending, and will call the handler again afterwards."""
        if self._sender != threading.get_ident():
            return False
        self._afterwards.append(handler)
        return True

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]
