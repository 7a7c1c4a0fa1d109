"""One file on its way out."""

import errno
import hashlib
import os
import stat

from guest_agent.contained import Tree
from guest_agent.file_path import Names
from guest_agent.listing import Entry


class Download:
    """A range of a regular file as it was at the start: what is appended later is left out.

    Closed by its owner whether or not open came to its end. Every method blocks on the disk and raises OSError.
    """

    def __init__(self, tree: Tree, names: Names, offset: int, length: int | None) -> None:
        self._tree = tree
        self._names = names
        self._position = offset
        self._length = length
        self._left = 0
        self._descriptor: int | None = None
        self._digest = hashlib.sha256()

    def open(self) -> Entry:
        """Links that stay inside are followed. IsADirectoryError for whatever is no regular file."""
        try:
            # Not blocking: the other end of a fifo may never come.
            descriptor = self._tree.open(self._names, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from error
            raise
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._left = max(0, status.st_size - self._position)
        if self._length is not None:
            self._left = min(self._left, self._length)
        return Entry(b"/".join(self._names), status)

    def read(self, most: int) -> bytes:
        """The next bytes; empty at the end."""
        if self._descriptor is None or not self._left:
            return b""
        data = os.pread(self._descriptor, min(self._left, most), self._position)
        self._position += len(data)
        self._left -= len(data)
        self._digest.update(data)
        return data

    def sha256(self) -> bytes:
        """Of everything that was read."""
        return self._digest.digest()

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
