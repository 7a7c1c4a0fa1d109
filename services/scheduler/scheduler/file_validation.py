"""What a request of FileService may say. Pure: each check returns or raises InvalidArgument."""

from google.protobuf import timestamp_pb2

from sandpool.v1 import file_pb2 as pb
from scheduler.validation import MAX_PATH_BYTES, check_page, check_session, invalid

DATA = ["mnt", "data"]
MAX_COMPONENT_BYTES = 255
MAX_MODE = 0o7777
MAX_DATA_BYTES = 1 << 20
MAX_FILE_BYTES = (1 << 63) - 1  # of the file systems and system calls
SHA256_BYTES = 32
# google.protobuf.Timestamp.
MIN_SECONDS, MAX_SECONDS = -62_135_596_800, 253_402_300_799


def check_path(field: str, path: str) -> None:
    """Of a file, as written: whether a symbolic link leads out is known in the guest only."""
    if not path:
        raise invalid(field, "is required")
    if "\0" in path or len(path.encode()) > MAX_PATH_BYTES:
        raise invalid(field, "must be at most 4096 bytes, without NUL")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if any(len(part.encode()) > MAX_COMPONENT_BYTES for part in parts):
        raise invalid(field, "no component may exceed 255 bytes")
    if path.startswith("/") and parts[:2] != DATA:
        raise invalid(field, "must be below /mnt/data", "PATH_OUTSIDE_DATA")
    if ".." in parts:
        raise invalid(field, 'must be below /mnt/data, without ".."', "PATH_OUTSIDE_DATA")


def _check_mode(field: str, mode: int) -> None:
    if mode > MAX_MODE:
        raise invalid(field, "must be at most 07777")


def is_timestamp(time: timestamp_pb2.Timestamp) -> bool:
    """Whether it keeps its own rules."""
    return MIN_SECONDS <= time.seconds <= MAX_SECONDS and 0 <= time.nanos < 10**9


def check_read(request: pb.ReadFileRequest) -> None:
    """Every field of a ReadFileRequest."""
    check_session(request.session)
    check_path("path", request.path)
    if request.offset > MAX_FILE_BYTES:
        raise invalid("offset", "must be less than 2^63")
    if request.length > MAX_FILE_BYTES:
        raise invalid("length", "must be less than 2^63")


def check_header(request: pb.WriteFileRequest) -> None:
    """The first message of a Write."""
    if request.WhichOneof("message") != "header":
        raise invalid("header", "the first message must have it")
    header = request.header
    check_session(header.session, "header.session")
    check_path("header.path", header.path)
    _check_mode("header.mode", header.mode)
    if header.sha256 and len(header.sha256) != SHA256_BYTES:
        raise invalid("header.sha256", "must be 32 bytes")
    if header.size_bytes > MAX_FILE_BYTES:
        raise invalid("header.size_bytes", "must be less than 2^63")
    if not is_timestamp(header.modified_at):
        raise invalid("header.modified_at", "must be in the years 1 to 9999")


def check_data(request: pb.WriteFileRequest) -> None:
    """Every later message of a Write."""
    if request.WhichOneof("message") != "data":
        raise invalid("data", "every message after the first must have it")
    if not 1 <= len(request.data) <= MAX_DATA_BYTES:
        raise invalid("data", "must be 1 to 1048576 bytes")


def check_list(request: pb.ListFilesRequest) -> None:
    """Every field of a ListFilesRequest."""
    check_session(request.session)
    if request.path:
        check_path("path", request.path)
    check_page(request.page_size, request.page_token)


def check_named(request: pb.StatFileRequest | pb.RemoveFileRequest) -> None:
    """Every field of a request that names a file and has nothing else to be checked."""
    check_session(request.session)
    check_path("path", request.path)


def check_move(request: pb.MoveFileRequest) -> None:
    """Every field of a MoveFileRequest."""
    check_session(request.session)
    check_path("source", request.source)
    check_path("destination", request.destination)


def check_make_dir(request: pb.MakeDirRequest) -> None:
    """Every field of a MakeDirRequest."""
    check_session(request.session)
    check_path("path", request.path)
    _check_mode("mode", request.mode)
