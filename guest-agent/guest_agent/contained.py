"""A directory tree that nothing done here can leave: every path is opened by the kernel beneath one descriptor.

User code changes the tree at the same time, so a check before an open would be worth nothing: openat2(2) resolves and
checks in one step, and everything else works on a parent's descriptor and a single name. What leaves the tree, by a
symbolic link or a mount of /proc, is OSError EXDEV (an absolute link counts as leaving, wherever it points).
"""

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from guest_agent.file_path import Names

# linux/openat2.h; the number is the same on every architecture.
SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH = 0x02, 0x08
RENAME_NOREPLACE = 1
# The kernel asks for another try when a rename happens while it resolves a "..".
ATTEMPTS = 64
DIRECTORY_MODE = 0o755

_libc = ctypes.CDLL(None, use_errno=True)


class Tree:
    """Owns the descriptor of the directory. owner gets what is made here (None: whoever runs this)."""

    def __init__(self, directory: Path, owner: int | None) -> None:
        self.path = os.fsencode(directory.resolve())
        self.descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._owner = owner

    def open(self, names: Names, flags: int, mode: int = 0) -> int:
        """Open beneath the tree, following links that stay inside. Raises OSError. The caller closes."""
        how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        path = b"/".join(names) or b"."
        for _ in range(ATTEMPTS):
            descriptor = int(_libc.syscall(SYS_OPENAT2, self.descriptor, path, how, len(how)))
            if descriptor >= 0:
                return descriptor
            if ctypes.get_errno() != errno.EAGAIN:
                break
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)

    @contextlib.contextmanager
    def directory(self, names: Names) -> Iterator[int]:
        """The descriptor of a directory, for as long as the block lasts; readable. Raises OSError."""
        descriptor = self.open(names, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def parent(self, names: Names) -> Iterator[tuple[int, bytes]]:
        """The descriptor of the directory that holds this path, and the last name. names is not empty."""
        descriptor = self.open(names[:-1], os.O_PATH | os.O_DIRECTORY)
        try:
            yield descriptor, names[-1]
        finally:
            os.close(descriptor)

    def make_directories(self, names: Names, mode: int = DIRECTORY_MODE) -> None:
        """Make a directory and its parents; mode is the last one's if it is new. One that is there is fine.

        Raises OSError: FileExistsError if the last one is something else, NotADirectoryError for a parent.
        """
        missing = len(names)
        while missing and not self._is_directory(names[:missing]):
            missing -= 1
        for end in range(missing + 1, len(names) + 1):
            try:
                self._make_directory(names[:end], mode if end == len(names) else DIRECTORY_MODE)
            except FileExistsError:
                if not self._is_directory(names[:end]):
                    raise

    def _is_directory(self, names: Names) -> bool:
        try:
            os.close(self.open(names, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            with self.parent(names) as (parent, name):  # raises if a parent is the culprit
                os.stat(name, dir_fd=parent, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), names[-1]) from None
        return True

    def _make_directory(self, names: Names, mode: int) -> None:
        with self.parent(names) as (parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                self.adopt(descriptor, mode)
            finally:
                os.close(descriptor)

    def adopt(self, descriptor: int, mode: int) -> None:
        """Give a new file or directory its owner and its exact mode."""
        if self._owner is not None:
            os.fchown(descriptor, self._owner, self._owner)
        os.fchmod(descriptor, mode)  # after fchown, which clears bits; and past the umask

    def rename(self, source: tuple[int, bytes], destination: tuple[int, bytes], replace: bool) -> None:
        """Rename between two parents, atomically. Raises OSError; FileExistsError if it may not replace."""
        flags = 0 if replace else RENAME_NOREPLACE
        if _libc.renameat2(*source, *destination, flags) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), destination[1])

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)
