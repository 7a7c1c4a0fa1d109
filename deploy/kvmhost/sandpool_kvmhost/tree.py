"""Which files of a tree go into the host: those that git knows or would know. Only what has changed is sent."""

import hashlib
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# A source tree, not a data set: the host's disk is for VMs.
MAX_FILES, MAX_BYTES = 20_000, 256 << 20


class BadTree(RuntimeError):
    """A tree that cannot be sent."""


# Of each path in a tree: what it is, as a hash.
Manifest = dict[str, str]


@dataclass(frozen=True)
class Changes:
    """From one manifest to the next."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> Changes:
    """What makes one out of the other."""
    changed = sorted(path for path, digest in after.items() if before.get(path) != digest)
    return Changes(tuple(changed), tuple(sorted(before.keys() - after.keys())))


def manifest(tree: Path) -> Manifest:
    """Of the tree as it is now. Raises BadTree."""
    found: Manifest = {}
    total = 0
    for name in _known(tree):
        try:
            data, mode = _content(tree / name)
        except FileNotFoundError:
            continue  # known to git, but deleted
        except IsADirectoryError:
            continue  # another repository inside
        total += len(data)
        if len(found) >= MAX_FILES or total > MAX_BYTES:
            raise BadTree(f"{tree}: more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB that git does not ignore")
        found[name] = hashlib.sha256(mode.to_bytes(4) + data).hexdigest()
    return found


def _known(tree: Path) -> Iterable[str]:
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise BadTree(f"{tree}: {done.stderr.decode(errors='replace').strip()}")
    return sorted(set(filter(None, os.fsdecode(done.stdout).split("\0"))))


def _content(path: Path) -> tuple[bytes, int]:
    """Bytes and mode; a link's bytes are where it points to."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return os.fsencode(path.readlink()), mode
    return path.read_bytes(), mode


def pack(tree: Path, paths: Iterable[str], order: Mapping[str, object], sink: BinaryIO) -> None:
    """What the other side's sync reads."""
    sink.write(json.dumps(order).encode() + b"\n")
    with tarfile.open(fileobj=sink, mode="w|") as archive:
        for path in paths:
            archive.add(tree / path, arcname=path, recursive=False, filter=_of_root)


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
