"""What the operating system's refusals are called in the public API (file.proto)."""

import contextlib
import errno
from collections.abc import Iterator

from grpclib.const import Status

from guest_agent.file_operations import NoName
from guest_agent.file_path import BadPath, Names, PathOutside, parse_path
from guest_agent.rpc import Refused
from guest_agent.upload import Mismatch

_INVALID, _STATE, _DENIED = Status.INVALID_ARGUMENT, Status.FAILED_PRECONDITION, Status.PERMISSION_DENIED
_FULL = Status.RESOURCE_EXHAUSTED

_REFUSALS = {
    errno.ENOENT: (Status.NOT_FOUND, "FILE_NOT_FOUND", "no such file or directory"),
    errno.EXDEV: (_INVALID, "PATH_OUTSIDE_DATA", "the path leads out of /mnt/data"),
    errno.ELOOP: (_INVALID, "PATH_OUTSIDE_DATA", "the path's symbolic links lead nowhere"),
    errno.EISDIR: (_STATE, "NOT_A_FILE", "not a regular file"),
    errno.ENOTDIR: (_STATE, "NOT_A_DIRECTORY", "not a directory"),
    errno.ENOTEMPTY: (_STATE, "DIRECTORY_NOT_EMPTY", "the directory is not empty"),
    errno.EEXIST: (Status.ALREADY_EXISTS, "FILE_EXISTS", "it exists already"),
    errno.EACCES: (_DENIED, "FILE_PERMISSION", "the file system refuses it"),
    errno.EPERM: (_DENIED, "FILE_PERMISSION", "the file system refuses it"),
    errno.EROFS: (_DENIED, "FILE_PERMISSION", "the file system is read-only"),
    errno.EBUSY: (_DENIED, "FILE_PERMISSION", "it is in use as a mount"),
    errno.EAGAIN: (_DENIED, "FILE_PERMISSION", "a program holds a lease on it"),
    errno.ETXTBSY: (_DENIED, "FILE_PERMISSION", "it is in use as a program"),
    errno.EMLINK: (_DENIED, "FILE_PERMISSION", "the file system holds no more names"),
    errno.ENOSPC: (_FULL, "DISK_FULL", "no room on the session's disk"),
    errno.EDQUOT: (_FULL, "DISK_FULL", "no room on the session's disk"),
    errno.EFBIG: (_FULL, "DISK_FULL", "larger than a file can be"),
    errno.ENAMETOOLONG: (_INVALID, "INVALID_FIELD", "the path is too long"),
    errno.EINVAL: (_INVALID, "INVALID_FIELD", "a directory cannot be moved into itself"),
}


def invalid(field: str, message: str) -> Refused:
    """A field that fails validation."""
    return Refused(_INVALID, "INVALID_FIELD", message, field)


def path_of(text: str, field: str, root: bytes) -> Names:
    """Parse a path of a request. Raises Refused."""
    try:
        return parse_path(text, root)
    except PathOutside as error:
        raise Refused(_INVALID, "PATH_OUTSIDE_DATA", str(error), field) from None
    except BadPath as error:
        raise invalid(field, str(error)) from None


@contextlib.contextmanager
def refusals(field: str = "path") -> Iterator[None]:
    """Raise Refused for what the file system refuses; field is the one to blame for a bad path."""
    try:
        yield
    except NoName:
        raise invalid(field, "/mnt/data itself stays where it is") from None
    except Mismatch as error:
        raise Refused(Status.DATA_LOSS, "CHECKSUM_MISMATCH", str(error)) from None
    except OSError as error:
        known = _REFUSALS.get(error.errno or 0)
        if known is None:
            raise Refused(Status.INTERNAL, "FILE_SYSTEM", error.strerror or "the file system failed") from error
        status, reason, message = known
        raise Refused(status, reason, message, field if status is _INVALID else "") from None
