"""Pages of a directory tree in the order of the bytes of the path, in memory bounded by the page.

The order of whole paths is had directory by directory: a directory's contents come where its name with "/" sorts ("a",
"a-b", "a/x"). Every page scans the directories that it touches again from the last path of the page before, and of each
keeps only as many names as the page can still need.
"""

import contextlib
import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from guest_agent.contained import Tree
from guest_agent.file_path import HIDDEN_PREFIX, MAX_NAME_BYTES, MAX_PATH_BYTES, Names


@dataclass(frozen=True)
class Entry:
    """One file or directory. path is relative to where the listing began."""

    path: bytes
    status: os.stat_result
    link_target: bytes = b""


# What is to be done next, by where it sorts: a path that ends in "/" is a directory to descend into.
_Step = tuple[bytes, Entry | None]


def list_entries(tree: Tree, names: Names, recursive: bool, after: bytes, most: int) -> Iterator[Entry]:
    """At most `most` entries below a directory with a path greater than after. Raises OSError for the directory itself.

    What appears or disappears meanwhile may be missed or seen; what cannot be entered is listed without its contents.
    """
    longest = MAX_PATH_BYTES - len(b"/".join((*names, b"")))
    with tree.directory(names) as descriptor:
        steps = _scan(descriptor, b"", recursive, after, most, longest)
    left = most
    while steps and left:
        path, entry = steps.pop()
        if entry is not None:
            left -= 1
            yield entry
            continue
        with contextlib.suppress(OSError), tree.directory((*names, *path[:-1].split(b"/"))) as descriptor:
            steps += _scan(descriptor, path, recursive, after, left, longest)
            _trim(steps, left)


def _scan(descriptor: int, prefix: bytes, recursive: bool, after: bytes, left: int, longest: int) -> list[_Step]:
    """Steps of one directory, last first. A longer path than the longest could not be named, and is left out.

    Each entry is a step and so may be its contents; contents without their entry, which sorted before `after`, belong
    to names that begin `after`: at most one per byte of a name.
    """
    with os.scandir(descriptor) as found:
        paths = (step for step in _steps(found, prefix, recursive, after) if len(step) <= longest)
        steps = heapq.nsmallest(2 * left + MAX_NAME_BYTES, paths)
    described: list[_Step] = []
    for path in reversed(steps):
        if path.endswith(b"/"):
            described.append((path, None))
        else:
            with contextlib.suppress(OSError):
                described.append((path, describe(descriptor, path[len(prefix) :], path)))
    return described


def _steps(found: Iterator[os.DirEntry[str]], prefix: bytes, recursive: bool, after: bytes) -> Iterator[bytes]:
    for one in found:
        name = os.fsencode(one.name)
        path = prefix + name
        if name.startswith(HIDDEN_PREFIX):
            continue
        if path > after:
            yield path
        contents = path + b"/"
        if recursive and (contents > after or after.startswith(contents)) and one.is_dir(follow_symlinks=False):
            yield contents


def _trim(steps: list[_Step], left: int) -> None:
    """Forget what comes after the last entry that the page has room for: trees may be deep and wide."""
    entries = 0
    for index in range(len(steps) - 1, -1, -1):
        entries += steps[index][1] is not None
        if entries == left:
            del steps[:index]
            return


def describe(parent: int, name: bytes, path: bytes) -> Entry:
    """Stat one name of an open directory; links are not followed. Raises OSError."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else b""
    return Entry(path, status, target)
