"""What is done to whole files and directories of the tree. Blocks on the disk; raises OSError."""

import contextlib
import errno
import os
import stat

from guest_agent.contained import Tree
from guest_agent.file_path import HIDDEN_PREFIX, Names
from guest_agent.listing import Entry, describe

# Directories nested deeper than this are emptied from the top instead: a tree may be deeper than descriptors last.
MAX_OPEN_LEVELS = 100
# User code may fill a directory while it is emptied; and each round takes MAX_OPEN_LEVELS off a deep one.
EMPTYING_ATTEMPTS = 1000


class NoName(Exception):
    """The data directory itself can be neither removed nor moved."""


def stat_path(tree: Tree, names: Names) -> Entry:
    """Of the path itself."""
    if not names:
        return Entry(b".", os.fstat(tree.descriptor))
    with tree.parent(names) as (parent, name):
        return describe(parent, name, b"/".join(names))


def make_directory(tree: Tree, names: Names, mode: int) -> Entry:
    """With its parents."""
    tree.make_directories(names, mode)
    with tree.directory(names) as descriptor:
        return Entry(b"/".join(names) or b".", os.fstat(descriptor))


def move(tree: Tree, source: Names, destination: Names, *, replace: bool) -> Entry:
    """Rename atomically. Raises NoName too."""
    if not source or not destination:
        raise NoName
    with tree.parent(source) as old, tree.parent(destination) as new:
        tree.rename(old, new, replace)
        _drop_other_name(old, new)
        return describe(*new, b"/".join(destination))


def _drop_other_name(old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
    """A rename between two names of one file does nothing, says POSIX: as mv, leave only the new one."""
    if old[1] == new[1] and os.path.samestat(os.fstat(old[0]), os.fstat(new[0])):
        return
    with contextlib.suppress(FileNotFoundError):
        left = os.stat(old[1], dir_fd=old[0], follow_symlinks=False)
        if os.path.samestat(left, os.stat(new[1], dir_fd=new[0], follow_symlinks=False)):
            os.unlink(old[1], dir_fd=old[0])


def remove(tree: Tree, names: Names, *, recursive: bool) -> None:
    """Remove a file, a link, an empty directory, or with recursive a directory with all its contents. Raises NoName."""
    if not names:
        raise NoName
    with tree.parent(names) as (parent, name):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
        elif recursive:
            _remove_directory(parent, name, None, 0)
        else:
            os.rmdir(name, dir_fd=parent)


def _remove_directory(parent: int, name: bytes, top: int | None, level: int) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(EMPTYING_ATTEMPTS):
        directory = os.open(name, flags, dir_fd=parent)
        try:
            _empty(directory, directory if top is None else top, level)
        finally:
            os.close(directory)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _empty(directory: int, top: int, level: int) -> None:
    """Remove the contents. At MAX_OPEN_LEVELS a directory is moved up to the top, whose next round removes it."""
    with os.scandir(directory) as found:
        for one in found:
            name = os.fsencode(one.name)
            with contextlib.suppress(FileNotFoundError):
                if not one.is_dir(follow_symlinks=False):
                    os.unlink(name, dir_fd=directory)
                elif level < MAX_OPEN_LEVELS:
                    _remove_directory(directory, name, top, level + 1)
                else:
                    up = HIDDEN_PREFIX + os.urandom(8).hex().encode()
                    os.rename(name, up, src_dir_fd=directory, dst_dir_fd=top)
