"""sandpool.v1.FileService as the guest serves it. Everything that touches the disk runs in a thread."""

import asyncio
import base64
import binascii
import stat
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from google.protobuf import timestamp_pb2

from guest_agent import file_operations
from guest_agent.contained import DIRECTORY_MODE, Tree
from guest_agent.download import Download
from guest_agent.file_errors import invalid, path_of, refusals
from guest_agent.file_path import Names, show_path
from guest_agent.listing import Entry, list_entries
from guest_agent.upload import Upload
from sandpool.v1 import file_pb2 as pb

READ_BYTES = 256 << 10
MAX_WRITE_BYTES = 1 << 20
FILE_MODE = 0o644
MAX_MODE = 0o7777
DEFAULT_PAGE, MAX_PAGE = 100, 1000
# No message to a client exceeds 1 MiB.
MAX_PAGE_BYTES = 512 << 10
# google.protobuf.Timestamp: the years 1 to 9999.
MIN_SECONDS, MAX_SECONDS = -62_135_596_800, 253_402_300_799
NANOSECONDS = 10**9

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """As asyncio.to_thread, but a caller that is cancelled waits for the thread: it uses what the caller closes."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        work.exception()  # seen, and of no interest to anyone
        raise asyncio.CancelledError
    return work.result()


class FileService:
    """Files below one directory."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def methods(self) -> dict[str, Any]:
        """By rpc name. Watch is not built yet."""
        return {
            "Read": self.read,
            "Write": self.write,
            "List": self.list,
            "Stat": self.stat,
            "Remove": self.remove,
            "Move": self.move,
            "MakeDir": self.make_dir,
        }

    def _path(self, text: str, field: str = "path") -> Names:
        return path_of(text, field, self._tree.path)

    async def read(self, request: pb.ReadFileRequest) -> AsyncIterator[pb.ReadFileResponse]:
        """Info, data, end. What is appended after the start of the call is not sent."""
        length = request.length if request.HasField("length") else None
        download = Download(self._tree, self._path(request.path), request.offset, length)
        try:
            with refusals():
                entry = await in_thread(download.open)
                yield pb.ReadFileResponse(info=pb.ReadFileInfo(file=_info(entry)))
                while data := await in_thread(download.read, READ_BYTES):
                    yield pb.ReadFileResponse(data=data)
            yield pb.ReadFileResponse(end=pb.ReadFileEnd(sha256=download.sha256()))
        finally:
            download.close()

    async def write(self, requests: AsyncIterator[pb.WriteFileRequest]) -> pb.WriteFileResponse:
        """Atomic: a call that does not come to its end leaves nothing."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "header":
            raise invalid("header", "the first message has the header")
        header = first.header
        names = self._path(header.path, "header.path")
        mode = _mode(header.mode if header.HasField("mode") else FILE_MODE, "header.mode")
        if len(header.sha256) not in (0, 32):
            raise invalid("header.sha256", "must be 32 bytes")
        modified_ns = _nanoseconds(header.modified_at, "header.modified_at") if header.HasField("modified_at") else None
        upload = Upload(self._tree, names, must_not_exist=header.must_not_exist, make_parents=header.make_parents)
        try:
            with refusals("header.path"):
                await in_thread(upload.open)
                if header.HasField("size_bytes"):
                    await in_thread(upload.reserve, header.size_bytes)
                async for request in requests:
                    await in_thread(upload.write, _data(request))
                entry, digest = await in_thread(upload.commit, mode, header.sha256, modified_ns)
        finally:
            await in_thread(upload.close)  # gives a large file's blocks back, which takes a while
        return pb.WriteFileResponse(file=_info(entry), sha256=digest)

    async def list(self, request: pb.ListFilesRequest) -> pb.ListFilesResponse:
        """The token is the last path of the page before."""
        names = self._path(request.path)
        if not 0 <= request.page_size <= MAX_PAGE:
            raise invalid("page_size", f"must be 0 to {MAX_PAGE}")
        size = request.page_size or DEFAULT_PAGE
        after = _from_token(request.page_token)
        with refusals():
            return await in_thread(self._page, names, request.recursive, after, size)

    def _page(self, names: Names, recursive: bool, after: bytes, size: int) -> pb.ListFilesResponse:
        response = pb.ListFilesResponse()
        last, total = b"", 0
        for entry in list_entries(self._tree, names, recursive, after, size + 1):
            info = _info(entry, names)
            total += info.ByteSize()
            if len(response.files) == size or (total > MAX_PAGE_BYTES and response.files):
                response.next_page_token = base64.urlsafe_b64encode(last).decode()
                break
            response.files.append(info)
            last = entry.path
        return response

    async def stat(self, request: pb.StatFileRequest) -> pb.StatFileResponse:
        """Links are not followed."""
        names = self._path(request.path)
        with refusals():
            return pb.StatFileResponse(file=_info(await in_thread(file_operations.stat_path, self._tree, names)))

    async def remove(self, request: pb.RemoveFileRequest) -> pb.RemoveFileResponse:
        """Links are removed, not what they point to."""
        names = self._path(request.path)
        with refusals():
            await in_thread(file_operations.remove, self._tree, names, recursive=request.recursive)
        return pb.RemoveFileResponse()

    async def move(self, request: pb.MoveFileRequest) -> pb.MoveFileResponse:
        """Atomic."""
        source, destination = self._path(request.source, "source"), self._path(request.destination, "destination")
        replace = not request.must_not_exist
        with refusals("destination"):
            entry = await in_thread(file_operations.move, self._tree, source, destination, replace=replace)
        return pb.MoveFileResponse(file=_info(entry))

    async def make_dir(self, request: pb.MakeDirRequest) -> pb.MakeDirResponse:
        """With its parents."""
        names = self._path(request.path)
        mode = _mode(request.mode if request.HasField("mode") else DIRECTORY_MODE, "mode")
        with refusals():
            entry = await in_thread(file_operations.make_directory, self._tree, names, mode)
        return pb.MakeDirResponse(file=_info(entry))


def _data(request: pb.WriteFileRequest) -> bytes:
    if request.WhichOneof("message") != "data":
        raise invalid("data", "every message after the header has data")
    if len(request.data) > MAX_WRITE_BYTES:
        raise invalid("data", f"more than {MAX_WRITE_BYTES} bytes in one message")
    return request.data


def _mode(mode: int, field: str) -> int:
    if mode > MAX_MODE:
        raise invalid(field, "permission bits are 0 to 07777")
    return mode


def _nanoseconds(time: timestamp_pb2.Timestamp, field: str) -> int:
    if not (MIN_SECONDS <= time.seconds <= MAX_SECONDS and 0 <= time.nanos < NANOSECONDS):
        raise invalid(field, "not in the years 1 to 9999")
    return time.seconds * NANOSECONDS + time.nanos


def _from_token(token: str) -> bytes:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise invalid("page_token", "not a token of ours") from None


def _info(entry: Entry, base: Names = ()) -> pb.FileInfo:
    info = pb.FileInfo(
        path=show_path((*base, entry.path)),
        type=_type(entry.status.st_mode),
        size_bytes=entry.status.st_size,
        mode=stat.S_IMODE(entry.status.st_mode),
        link_target=entry.link_target.decode("utf-8", "replace"),
    )
    seconds, nanoseconds = divmod(entry.status.st_mtime_ns, NANOSECONDS)
    info.modified_at.seconds = max(MIN_SECONDS, min(seconds, MAX_SECONDS))
    info.modified_at.nanos = nanoseconds
    return info


def _type(mode: int) -> pb.FileType.ValueType:
    if stat.S_ISREG(mode):
        return pb.FILE_TYPE_REGULAR
    if stat.S_ISDIR(mode):
        return pb.FILE_TYPE_DIRECTORY
    return pb.FILE_TYPE_SYMLINK if stat.S_ISLNK(mode) else pb.FILE_TYPE_OTHER
