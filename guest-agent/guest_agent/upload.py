"""One file on its way into the tree: nothing is visible before it is whole, and nothing is left of one that is not."""

import contextlib
import errno
import hashlib
import os
import stat

from guest_agent.contained import Tree
from guest_agent.file_path import HIDDEN_PREFIX, Names
from guest_agent.listing import Entry, describe


class Mismatch(Exception):
    """What arrived is not what was announced."""


class Upload:
    """Closed by its owner whether or not open came to its end; without commit that leaves nothing.

    Every method blocks on the disk and raises OSError.
    The file has no name while it is written (O_TMPFILE), so that nothing is left even if the agent is killed; on a file
    system that cannot do this it has a hidden name. A symbolic link at the path is replaced, not followed.
    """

    def __init__(self, tree: Tree, names: Names, *, must_not_exist: bool, make_parents: bool) -> None:
        self._tree = tree
        self._names = names
        self._must_not_exist = must_not_exist
        self._make_parents = make_parents
        self._hidden = HIDDEN_PREFIX + os.urandom(8).hex().encode()
        self._named = False
        self._descriptor = -1
        self._digest = hashlib.sha256()
        self._size = 0
        self._reserved: int | None = None

    def open(self) -> None:
        """Raises for what is wrong already, before the client sends it all. Parents are made at the end."""
        self._check()
        try:
            self._descriptor = self._tree.open((), os.O_TMPFILE | os.O_RDWR, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            self._descriptor = self._tree.open((self._hidden,), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            self._named = True

    def close(self) -> None:
        """Once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        if self._named:
            with contextlib.suppress(OSError), self._tree.directory(()) as root:
                os.unlink(self._hidden, dir_fd=root)

    def _check(self) -> None:
        if not self._names:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        later = contextlib.suppress(FileNotFoundError) if self._make_parents else contextlib.nullcontext()
        with later, self._tree.parent(self._names) as (parent, name), contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if self._must_not_exist:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def reserve(self, size_bytes: int) -> None:
        """Take the room on the disk now; exactly this much must follow."""
        self._reserved = size_bytes
        if size_bytes > 1 << 62:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if size_bytes:
            os.posix_fallocate(self._descriptor, 0, size_bytes)

    def write(self, data: bytes) -> None:
        """Append. Raises Mismatch beyond what was announced."""
        self._size += len(data)
        if self._reserved is not None and self._size > self._reserved:
            raise Mismatch(f"more than the {self._reserved} bytes announced")
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def commit(self, mode: int, sha256: bytes, modified_ns: int | None) -> tuple[Entry, bytes]:
        """Make the file visible, whole, in one step. Returns what it is now, and its digest. Raises Mismatch."""
        digest = self._digest.digest()
        if self._reserved is not None and self._size != self._reserved:
            raise Mismatch(f"{self._size} bytes instead of the {self._reserved} announced")
        if sha256 and sha256 != digest:
            raise Mismatch("the bytes that arrived have another SHA-256")
        self._tree.adopt(self._descriptor, mode)
        if modified_ns is not None:
            os.utime(self._descriptor, ns=(modified_ns, modified_ns))
        if self._make_parents:
            try:
                self._tree.make_directories(self._names[:-1])
            except FileExistsError as error:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
        with self._tree.parent(self._names) as (parent, name):
            self._place(parent, name)
            return describe(parent, name, b"/".join(self._names)), digest

    def _place(self, parent: int, name: bytes) -> None:
        if self._named:
            with self._tree.directory(()) as root:
                self._tree.rename((root, self._hidden), (parent, name), replace=not self._must_not_exist)
        elif self._must_not_exist:
            self._link(parent, name)
        else:  # a link replaces nothing: a hidden name first, for the moment until the rename
            self._link(parent, self._hidden)
            try:
                self._tree.rename((parent, self._hidden), (parent, name), replace=True)
            except OSError:
                os.unlink(self._hidden, dir_fd=parent)
                raise

    def _link(self, parent: int, name: bytes) -> None:
        os.link(f"/proc/self/fd/{self._descriptor}", name, dst_dir_fd=parent, follow_symlinks=True)
