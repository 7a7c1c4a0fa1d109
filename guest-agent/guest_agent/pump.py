"""From a pipe of a program into its execution's output, held back while readers are behind."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable

# Both ends do more at a time: with the default of 64 KiB every message is a quarter of what it may be.
PIPE_BYTES = READ_BYTES = 256 << 10


class Pump:
    """Reads a non-blocking descriptor. sink gets the bytes; room says whether more may be read. Owns the descriptor."""

    def __init__(self, descriptor: int, sink: Callable[[bytes], None], room: Callable[[], bool]) -> None:
        os.set_blocking(descriptor, False)
        with contextlib.suppress(OSError):  # not a pipe, or the user's share of such memory is used up
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._descriptor = descriptor
        self._sink = sink
        self._room = room
        self._loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self._reading = False
        self.resume()

    def redirect(self, sink: Callable[[bytes], None], room: Callable[[], bool]) -> None:
        """The next bytes belong to another execution."""
        self._sink, self._room = sink, room
        self.resume()

    def resume(self) -> None:
        """Go on reading if there is room. Called when readers have moved."""
        if not self._reading and not self.closed.is_set() and self._room():
            self._reading = True
            self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        if not self._room():
            self._loop.remove_reader(self._descriptor)
            self._reading = False
            return
        self._take()

    def _take(self) -> bool:
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._sink(data)
        return True

    def drain(self, most: int = 2 << 20) -> None:
        """Take what is in the pipe now, room or not: at most a pipe's capacity and a little."""
        for _ in range(most // READ_BYTES):
            if self.closed.is_set() or not self._take():
                return

    def close(self) -> None:
        """Stop, and close the descriptor. Idempotent."""
        if self.closed.is_set():
            return
        if self._reading:
            self._loop.remove_reader(self._descriptor)
            self._reading = False
        os.close(self._descriptor)
        self.closed.set()
