"""sandpool.v1.FileService as clients see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from sandpool.v1 import file_pb2 as pb
from sandpool.v1 import file_pb2_grpc
from scheduler import file_check, file_stream
from scheduler import file_validation as validation
from scheduler.routes import Routes
from scheduler.session_call import SessionCall
from scheduler.unary import UnaryMethod
from service_kit.errors import Unimplemented

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


LIST: UnaryMethod[pb.ListFilesRequest, pb.ListFilesResponse] = UnaryMethod(
    lambda route: route.files.List, validation.check_list, file_check.check_listed
)
STAT: UnaryMethod[pb.StatFileRequest, pb.StatFileResponse] = UnaryMethod(
    lambda route: route.files.Stat,
    validation.check_named,
    lambda request, response: file_check.check_info(response.file, request.path),
)
REMOVE: UnaryMethod[pb.RemoveFileRequest, pb.RemoveFileResponse] = UnaryMethod(
    lambda route: route.files.Remove, validation.check_named, repeatable=False
)
MOVE: UnaryMethod[pb.MoveFileRequest, pb.MoveFileResponse] = UnaryMethod(
    lambda route: route.files.Move,
    validation.check_move,
    lambda request, response: file_check.check_info(response.file, request.destination),
    repeatable=False,
)
MAKE_DIR: UnaryMethod[pb.MakeDirRequest, pb.MakeDirResponse] = UnaryMethod(
    lambda route: route.files.MakeDir,
    validation.check_make_dir,
    lambda request, response: file_check.check_info(response.file, request.path),
    allocates=True,
)


class FileService(file_pb2_grpc.FileServiceServicer):
    """Finds the session's VM and passes on what it says, checked."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def Read(self, request: pb.ReadFileRequest, context: Context) -> AsyncIterator[pb.ReadFileResponse]:  # noqa: N802
        """Stream a file or a range of it."""
        validation.check_read(request)
        call = SessionCall(self._routes, request.session, context, allocates=False)
        request.ClearField("session")
        return file_stream.read(call, request)

    async def Write(  # noqa: N802
        self, requests: AsyncIterator[pb.WriteFileRequest], context: Context
    ) -> pb.WriteFileResponse:
        """Write a file atomically."""
        messages = _to_the_end(requests, context)
        first = await anext(messages, pb.WriteFileRequest())
        validation.check_header(first)
        call = SessionCall(self._routes, first.header.session, context, allocates=True)
        first.header.ClearField("session")
        return await file_stream.write(call, first, messages)

    async def List(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:  # noqa: N802
        """By path, paged."""
        return await LIST.call(self._routes, request, context)

    async def Stat(self, request: pb.StatFileRequest, context: Context) -> pb.StatFileResponse:  # noqa: N802
        """Describe one."""
        return await STAT.call(self._routes, request, context)

    async def Remove(self, request: pb.RemoveFileRequest, context: Context) -> pb.RemoveFileResponse:  # noqa: N802
        """Remove a file or directory."""
        return await REMOVE.call(self._routes, request, context)

    async def Move(self, request: pb.MoveFileRequest, context: Context) -> pb.MoveFileResponse:  # noqa: N802
        """Rename."""
        return await MOVE.call(self._routes, request, context)

    async def MakeDir(self, request: pb.MakeDirRequest, context: Context) -> pb.MakeDirResponse:  # noqa: N802
        """Make a directory and its parents."""
        return await MAKE_DIR.call(self._routes, request, context)

    def Watch(  # noqa: N802
        self, request: pb.WatchFilesRequest, context: Context
    ) -> AsyncIterator[pb.WatchFilesResponse]:
        """Not built yet."""
        raise Unimplemented("UNIMPLEMENTED", "watching files is not built yet")


async def _to_the_end(
    requests: AsyncIterator[pb.WriteFileRequest], context: Context
) -> AsyncIterator[pb.WriteFileRequest]:
    """What the client sends; a call that breaks off is cancelled before that looks like its end.

    To grpcio the requests of such a call end, and it is cancelled a moment later: that has happened by the time that
    another read is answered.
    """
    async for request in requests:
        yield request
    await context.read()
