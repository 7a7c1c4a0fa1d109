"""The order and bounds that a guest's answers about files must keep. Pure."""

from sandpool.v1 import file_pb2 as pb
from scheduler.guest_check import GuestProtocolError

MAX_CHUNK_BYTES = 262_144
# Bytes that are not UTF-8 arrive as U+FFFD: three bytes for one.
MAX_PATH_BYTES = 3 * 4096
SHA256_BYTES = 32


class ReadCheck:
    """Checks one Read: info, then data up to what was asked for, then the end."""

    def __init__(self, length: int | None) -> None:
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
            check_info(response.info.file)
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


def check_info(info: pb.FileInfo) -> None:
    """One description of a file. Raises GuestProtocolError."""
    if len(info.path.encode()) > MAX_PATH_BYTES or len(info.link_target.encode()) > MAX_PATH_BYTES:
        raise GuestProtocolError("a path that is too long")
    if info.type not in pb.FileType.values() or info.mode > 0o7777:
        raise GuestProtocolError("an impossible file")


def check_written(response: pb.WriteFileResponse) -> None:
    """The answer to a Write. Raises GuestProtocolError."""
    check_info(response.file)
    if len(response.sha256) != SHA256_BYTES:
        raise GuestProtocolError("a checksum of a bad size")
