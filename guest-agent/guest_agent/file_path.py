"""Paths of files as clients write them, made relative to the data directory. Pure.

A path is a tuple of names; the data directory itself is (). Names are bytes, as the kernel has them. ".." is refused
wherever it stands: with symbolic links about, only the kernel can say where it leads. Symbolic links are the kernel's
part too: see contained.py.
"""

DATA = b"/mnt/data"
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
# A file of ours on its way into place; listings leave it out.
HIDDEN_PREFIX = b".sandpool-part-"

Names = tuple[bytes, ...]


class PathOutside(ValueError):
    """The path leaves the data directory."""


class BadPath(ValueError):
    """No path at all."""


def parse_path(text: str, root: bytes = DATA) -> Names:
    """The names of a path, absolute below DATA or root, or relative. Raises PathOutside, BadPath."""
    path = text.encode("utf-8", "surrogateescape")
    if b"\0" in path:
        raise BadPath("a path has no NUL")
    if len(path) > MAX_PATH_BYTES:
        raise BadPath(f"longer than {MAX_PATH_BYTES} bytes")
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    if b".." in names:
        raise PathOutside('".." is not allowed in a path')
    if any(len(name) > MAX_NAME_BYTES for name in names):
        raise BadPath(f"a component is longer than {MAX_NAME_BYTES} bytes")
    return _below(names, root) if path.startswith(b"/") else names


def _below(names: Names, root: bytes) -> Names:
    for directory in (DATA, root):
        base = tuple(name for name in directory.split(b"/") if name)
        if names[: len(base)] == base:
            return names[len(base) :]
    raise PathOutside(f"an absolute path begins with {DATA.decode()}")


def show_path(names: Names) -> str:
    """For people and clients: what is not UTF-8 becomes U+FFFD; the data directory itself is "."."""
    return b"/".join(names).decode("utf-8", "replace") or "."
