"""The synchronous client: the asynchronous one on an event loop thread of its own. Usable from any thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Self, TypeVar, Unpack

from sandpool import events, files
from sandpool.aio import TIMEOUT_SECONDS, AsyncClient
from sandpool.execution import Options, Sink
from sandpool.history import Filter
from sandpool.session import AsyncSession
from sandpool.settings import Settings
from sandpool.v1 import event_pb2, file_pb2, node_pb2, pool_pb2, session_pb2

T = TypeVar("T")
# Work that is interrupted gets this long to clean up.
CANCEL_SECONDS = 5.0


class _Bridge:
    """Runs coroutines and iterators of one event loop for other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # Whether work may be submitted; a thread that holds the lock may come again, from the garbage collector.
        self._closing, self._lock = False, threading.RLock()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandpool", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closing

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a sink or progress callback cannot use its own client, which waits for it to return")
        over = threading.Event()

        async def whole() -> T:
            try:
                return await work
            finally:
                over.set()

        with self._lock:
            if self._closing:
                work.close()
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(whole(), self._loop)
        try:
            return future.result()
        except BaseException:  # of the work; or Ctrl-C while we wait, and then the work has to end first
            future.cancel()
            over.wait(CANCEL_SECONDS)
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """One item at a time: what is not asked for is not read."""
        end = object()

        async def step() -> T | object:
            return await anext(source, end)

        try:
            while (item := self.run(step())) is not end:
                yield item  # type: ignore[misc]
        finally:
            # Not waited for: the garbage collector drops iterators on any thread, ours too. close() ends the others.
            with self._lock:
                if isinstance(source, AsyncGenerator) and not self._closing:
                    asyncio.run_coroutine_threadsafe(_close(source), self._loop)

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(_cancel_others())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _close(source: AsyncGenerator[Any, None]) -> None:
    await source.aclose()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Client:
    """As AsyncClient: `with Client() as client`."""

    def __init__(self, address: str | None = None, *, timeout: float | None = TIMEOUT_SECONDS) -> None:
        self._bridge = _Bridge()

        async def connect() -> AsyncClient:
            return AsyncClient(address, timeout=timeout)

        self._client = self._bridge.run(connect())
        self.address = self._client.address
        self.pools = Pools(self._bridge, self._client)
        self.history = History(self._bridge, self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Sessions go on. Idempotent."""
        if not self._bridge.closed:
            self._bridge.run(self._client.close())
            self._bridge.close()

    def session(self, pool: str = "python", identifier: str | None = None, *, pin: bool = True) -> Session:
        """A session by name; a random one without."""
        return Session(self._bridge, self._client.session(pool, identifier, pin=pin))

    def sessions(self, pool: str = "python") -> Iterator[session_pb2.Session]:
        """Every live session of a pool."""
        return self._bridge.iterate(self._client.sessions(pool))

    def nodes(self) -> Iterator[node_pb2.Node]:
        """Every node."""
        return self._bridge.iterate(self._client.nodes())


class Pools:
    """As pools.Pools."""

    def __init__(self, bridge: _Bridge, client: AsyncClient) -> None:
        self._bridge, self._pools = bridge, client.pools

    def create(self, name: str, spec: pool_pb2.PoolSpec | None = None, **settings: Unpack[Settings]) -> pool_pb2.Pool:
        """Make a pool. Idempotent with identical settings."""
        return self._bridge.run(self._pools.create(name, spec, **settings))

    def get(self, name: str) -> pool_pb2.Pool:
        """One pool."""
        return self._bridge.run(self._pools.get(name))

    def list(self) -> Iterator[pool_pb2.Pool]:
        """Every pool."""
        return self._bridge.iterate(self._pools.list())

    def update(
        self,
        name: str,
        spec: pool_pb2.PoolSpec | None = None,
        *fields: str,
        expected_generation: int | None = None,
        **settings: Unpack[Settings],
    ) -> pool_pb2.Pool:
        """Change settings by keyword, or the named fields of a PoolSpec."""
        work = self._pools.update(name, spec, *fields, expected_generation=expected_generation, **settings)
        return self._bridge.run(work)

    def delete(self, name: str, *, force: bool = False) -> None:
        """No new sessions from now on; gone with the last VM."""
        self._bridge.run(self._pools.delete(name, force=force))

    def until_ready(self, name: str, timeout: float | None = None) -> pool_pb2.Pool:
        """Wait until all that is to be warm is. Raises TimeoutError, too."""
        return self._bridge.run(_within(timeout, self._pools.until_ready(name)))

    def until_gone(self, name: str, timeout: float | None = None) -> None:
        """Wait until a pool that is being deleted is no more. Raises TimeoutError, too."""
        self._bridge.run(_within(timeout, self._pools.until_gone(name)))


class History:
    """As history.History."""

    def __init__(self, bridge: _Bridge, client: AsyncClient) -> None:
        self._bridge, self._history = bridge, client.history

    def list(
        self, *, oldest_first: bool = False, after: int = 0, **chosen: Unpack[Filter]
    ) -> Iterator[event_pb2.Event]:
        """Every event that is kept, the newest first."""
        return self._bridge.iterate(self._history.list(oldest_first=oldest_first, after=after, **chosen))

    def watch(self, *, after: int | None = None, **chosen: Unpack[Filter]) -> Iterator[event_pb2.Event]:
        """Events as they happen, for ever."""
        return self._bridge.iterate(self._history.watch(after=after, **chosen))


async def _within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await work


class Session:
    """As AsyncSession."""

    def __init__(self, bridge: _Bridge, session: AsyncSession) -> None:
        self._bridge, self._session = bridge, session
        self.pool, self.identifier = session.pool, session.identifier
        self.files = SessionFiles(bridge, session.files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def epoch(self) -> int | None:
        """Of the session that this object stands for; None before its first use."""
        return self._session.epoch

    def stream(self, source: str, **options: Unpack[Options]) -> Iterator[events.Event]:
        """Run Python code; its events as they happen."""
        return self._bridge.iterate(self._session.stream(source, **options))

    def stream_command(self, command: Sequence[str] | str, **options: Unpack[Options]) -> Iterator[events.Event]:
        """Run a command; its events as they happen."""
        return self._bridge.iterate(self._session.stream_command(command, **options))

    def run(
        self, source: str, *, on_stdout: Sink | None = None, on_stderr: Sink | None = None, **options: Unpack[Options]
    ) -> events.Result:
        """Run Python code to its end. The sinks are called on the client's own thread, and cannot use the client."""
        return self._bridge.run(self._session.run(source, on_stdout=on_stdout, on_stderr=on_stderr, **options))

    def exec(
        self,
        command: Sequence[str] | str,
        *,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        **options: Unpack[Options],
    ) -> events.Result:
        """Run a command to its end. The sinks are called on the client's own thread, and cannot use the client."""
        return self._bridge.run(self._session.exec(command, on_stdout=on_stdout, on_stderr=on_stderr, **options))

    def attach(self, execution_id: str, position: int = 0) -> Iterator[events.Event]:
        """The events of an execution from a position."""
        return self._bridge.iterate(self._session.attach(execution_id, position))

    def cancel(self, execution_id: str) -> bool:
        """End an execution."""
        return self._bridge.run(self._session.cancel(execution_id))

    def signal(self, execution_id: str, number: int) -> None:
        """Send a POSIX signal."""
        self._bridge.run(self._session.signal(execution_id, number))

    def input(self, execution_id: str, data: bytes, *, end: bool = False) -> None:
        """Write to standard input."""
        self._bridge.run(self._session.input(execution_id, data, end=end))

    def write(self, path: str, data: bytes | str | os.PathLike[str] | IO[bytes]) -> file_pb2.FileInfo:
        """Write a file: bytes, text, a local file or an open binary one."""
        return self._bridge.run(self._session.write(path, data))

    def read(self, path: str) -> bytes:
        """A whole file."""
        return self._bridge.run(self._session.read(path))

    def upload(self, local: str | os.PathLike[str], path: str) -> file_pb2.FileInfo:
        """Copy a local file there."""
        return self._bridge.run(self._session.upload(local, path))

    def download(self, path: str, local: str | os.PathLike[str]) -> None:
        """Copy a file here."""
        self._bridge.run(self._session.download(path, local))

    def ensure(self, timeout: float | None = None) -> session_pb2.SessionBinding:
        """Make the session if it is not there."""
        return self._bridge.run(self._session.ensure(timeout))

    def info(self) -> session_pb2.Session:
        """What is known of the session."""
        return self._bridge.run(self._session.info())

    def stop(self) -> bool:
        """End the session and destroy its VM."""
        return self._bridge.run(self._session.stop())


class SessionFiles:
    """As files.Files."""

    def __init__(self, bridge: _Bridge, source: files.Files) -> None:
        self._bridge, self._files = bridge, source

    def write(self, path: str, data: bytes | str | IO[bytes], *, mode: int | None = None) -> file_pb2.FileInfo:
        """Write a whole file atomically."""
        return self._bridge.run(self._files.write(path, data, mode=mode))

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file or a part of it."""
        return self._bridge.run(self._files.read(path, offset=offset, length=length))

    def upload(
        self, local: str | os.PathLike[str], path: str, progress: files.Progress | None = None
    ) -> file_pb2.FileInfo:
        """Copy a file there."""
        return self._bridge.run(self._files.upload(local, path, progress))

    def download(self, path: str, local: str | os.PathLike[str], progress: files.Progress | None = None) -> None:
        """Copy a file here."""
        self._bridge.run(self._files.download(path, local, progress))

    def list(self, path: str = "", *, recursive: bool = False) -> Iterator[file_pb2.FileInfo]:
        """Every entry of a directory."""
        return self._bridge.iterate(self._files.list(path, recursive=recursive))

    def stat(self, path: str) -> file_pb2.FileInfo:
        """Of the path itself."""
        return self._bridge.run(self._files.stat(path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """A file or directory."""
        self._bridge.run(self._files.remove(path, recursive=recursive))

    def move(self, source: str, destination: str) -> file_pb2.FileInfo:
        """Rename."""
        return self._bridge.run(self._files.move(source, destination))

    def mkdir(self, path: str) -> file_pb2.FileInfo:
        """A directory and its parents."""
        return self._bridge.run(self._files.mkdir(path))
