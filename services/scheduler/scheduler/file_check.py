"""The order and bounds that a guest's answers about files must keep. Pure."""

from sandpool.v1 import file_pb2 as pb
from scheduler.guest_check import GuestProtocolError, check_page, check_time

MAX_CHUNK_BYTES = 262_144
# Bytes that are not UTF-8 arrive as U+FFFD: three bytes for one.
MAX_PATH_BYTES = 3 * 4096
SHA256_BYTES = 32
DATA = ("mnt", "data")
MAX_MODE = 0o7777
MAX_FILE_BYTES = (1 << 63) - 1  # of the file systems and system calls


def shown(path: str) -> str:
    """How a guest shows the path that a client wrote: relative to the data directory, which itself is "."."""
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if path.startswith("/") and names[:2] == DATA:
        names = names[2:]
    return "/".join(names) or "."


class ReadCheck:
    """Checks one Read: info, then data up to what was asked for, then the end."""

    def __init__(self, path: str, length: int | None) -> None:
        self._path = path
        self.begun = False
        self.ended = False
        self._left = length

    def admit(self, response: pb.ReadFileResponse) -> None:
        """Check the next message and drop what is unknown in it. Raises GuestProtocolError."""
        response.DiscardUnknownFields()
        kind = response.WhichOneof("message")
        if self.ended or kind is None or (kind == "info") == self.begun:
            raise GuestProtocolError("a file's messages are out of order")
        if kind == "info":
            check_info(response.info.file, self._path)
            self.begun = True
        elif kind == "data":
            self._admit_data(len(response.data))
        elif len(response.end.sha256) != SHA256_BYTES:
            raise GuestProtocolError("a checksum of a bad size")
        else:
            self.ended = True

    def _admit_data(self, size: int) -> None:
        if not 1 <= size <= MAX_CHUNK_BYTES:
            raise GuestProtocolError("a file chunk of a bad size")
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise GuestProtocolError("more of a file than was asked for")

    def finish(self) -> None:
        """The guest ended its stream with OK. Raises GuestProtocolError."""
        if not self.ended:
            raise GuestProtocolError("a file without an end")


def check_info(info: pb.FileInfo, path: str | None = None) -> None:
    """One description of a file, of this path if one was asked for. Raises GuestProtocolError."""
    if path is not None and info.path != shown(path):
        raise GuestProtocolError("another path than asked for")
    if len(info.path.encode()) > MAX_PATH_BYTES or len(info.link_target.encode()) > MAX_PATH_BYTES:
        raise GuestProtocolError("a path that is too long")
    if info.type not in pb.FileType.values() or info.mode > MAX_MODE or info.size_bytes > MAX_FILE_BYTES:
        raise GuestProtocolError("an impossible file")
    check_time(info.modified_at)


def check_listed(request: pb.ListFilesRequest, response: pb.ListFilesResponse) -> None:
    """A page of what is in a directory, or with recursive below it. Raises GuestProtocolError."""
    check_page(len(response.files), request.page_size, response.next_page_token)
    directory = shown(request.path)
    prefix = "" if directory == "." else f"{directory}/"
    for info in response.files:
        check_info(info)
        name = info.path.removeprefix(prefix)
        if not info.path.startswith(prefix) or not name or ("/" in name and not request.recursive):
            raise GuestProtocolError("a file that is not in the directory asked for")


def check_written(response: pb.WriteFileResponse, path: str) -> None:
    """The answer to a Write. Raises GuestProtocolError."""
    check_info(response.file, path)
    if len(response.sha256) != SHA256_BYTES:
        raise GuestProtocolError("a checksum of a bad size")
