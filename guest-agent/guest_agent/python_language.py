"""The agent's side of the Python worker: cells run first in, first out; a dead worker is replaced."""

import asyncio
import base64
import json
import os
import signal
import struct
import sys
from dataclasses import dataclass

from guest_agent.execution import CHUNK_BYTES, Execution
from guest_agent.launch import Launcher
from guest_agent.output import STDERR, STDOUT
from guest_agent.pump import Pump
from sandpool.v1 import execution_pb2 as pb

QUEUE_LENGTH = 16
# A worker that does not answer an interrupt in this time is killed.
INTERRUPT_GRACE_SECONDS = 2.0
# One representation of one displayed value; the worker runs user code, so its frames are hostile.
MAX_FRAME_BYTES = 64 << 20


class QueueFull(Exception):
    """QUEUE_LENGTH cells wait already."""


class BadFrame(Exception):
    """User code wrote nonsense to the worker's own pipe."""


@dataclass
class Cell:
    """One run of code."""

    execution: Execution
    source: str
    env: dict[str, str]
    cwd: str | None
    stdin: bytes
    timeout_seconds: float
    kill: pb.KillReason.ValueType = pb.KILL_REASON_UNSPECIFIED


@dataclass
class Process:
    """One living worker."""

    process: asyncio.subprocess.Process
    requests: int
    replies: asyncio.StreamReader
    transport: asyncio.ReadTransport
    stdout: Pump
    stderr: Pump

    async def receive(self) -> tuple[str, bytes]:
        """The next frame. Raises IncompleteReadError when the worker is gone, BadFrame."""
        kind, length = struct.unpack(">BI", await self.replies.readexactly(5))
        if length > MAX_FRAME_BYTES:
            raise BadFrame
        return chr(kind), await self.replies.readexactly(length)

    def send(self, kind: str, payload: bytes) -> None:
        """Write a request: at most 1 MiB and a little, into a pipe that the worker is waiting on."""
        os.set_blocking(self.requests, True)
        view = memoryview(struct.pack(">BI", ord(kind), len(payload)) + payload)
        try:
            while view:
                view = view[os.write(self.requests, view) :]
        except BrokenPipeError:
            return  # the reader of replies sees the end

    def close(self) -> None:
        """Kill what is left and close every descriptor."""
        if self.process.returncode is None:
            self.process.kill()
        self.transport.close()
        self.stdout.close()
        self.stderr.close()
        os.close(self.requests)


class PythonLanguage:
    """Owns the worker. run() is the one task that talks to it."""

    def __init__(self, launcher: Launcher, preimport: bool) -> None:
        self._launcher = launcher
        self._preimport = preimport
        self._queue: asyncio.Queue[Cell] = asyncio.Queue(QUEUE_LENGTH)
        self._worker: Process | None = None
        self._lock = asyncio.Lock()
        self._current: Cell | None = None
        self._impatient: asyncio.TimerHandle | None = None

    def submit(self, cell: Cell) -> None:
        """Queue a cell. Raises QueueFull."""
        try:
            self._queue.put_nowait(cell)
        except asyncio.QueueFull:
            raise QueueFull from None
        cell.execution.cancel = lambda reason: self._stop(cell, reason)
        cell.execution.signal = lambda number: self._signal(cell, number)

    async def run(self) -> None:
        """Run cells until cancelled."""
        try:
            while True:
                cell = await self._queue.get()
                if cell.execution.end is None:
                    async with self._lock:
                        await self._run_cell(cell)
        finally:
            if self._worker:
                self._worker.close()

    async def seed(self, seed: bytes) -> bytes:
        """Reseed the worker's generators; starts the worker if there is none. Returns a sample of 32 bytes."""
        async with self._lock:
            worker = await self._ensure()
            worker.send("S", seed)
            _, sample = await worker.receive()
            return sample[:32]

    async def _ensure(self) -> Process:
        if self._worker is None:
            self._worker = await self._start()
        return self._worker

    async def _start(self) -> Process:
        requests_in, requests_out = os.pipe()
        replies_in, replies_out = os.pipe()
        stdout_in, stdout_out = os.pipe()
        stderr_in, stderr_out = os.pipe()
        arguments = [sys.executable, "-u", "-m", "guest_agent.worker", str(requests_in), str(replies_out)]
        process = await self._launcher.start(
            "python",
            arguments + ["--preimport"] * self._preimport,
            streams={
                "stdin": asyncio.subprocess.DEVNULL,
                "stdout": stdout_out,
                "stderr": stderr_out,
                "pass_fds": (requests_in, replies_out),
            },
        )
        for descriptor in (requests_in, replies_out, stdout_out, stderr_out):
            os.close(descriptor)
        replies = asyncio.StreamReader(limit=1 << 20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(replies), os.fdopen(replies_in, "rb")
        )
        ignore = lambda _data: None  # noqa: E731
        pumps = [Pump(descriptor, ignore, lambda: True) for descriptor in (stdout_in, stderr_in)]
        worker = Process(process, requests_out, replies, transport, *pumps)
        await worker.receive()  # ready
        return worker

    async def _run_cell(self, cell: Cell) -> None:
        worker = await self._ensure()
        execution, loop = cell.execution, asyncio.get_running_loop()
        execution.start()
        self._current = cell
        timer = loop.call_later(cell.timeout_seconds, self._stop, cell, pb.KILL_REASON_TIMEOUT)
        try:
            self._redirect(worker, cell)
            worker.send("X", _request(cell))
            ended = await self._collect(worker, execution)
        except (asyncio.IncompleteReadError, BadFrame, ValueError, KeyError):
            ended = await self._bury(worker)
        finally:
            timer.cancel()
            self._current = None
            if self._impatient:
                self._impatient.cancel()
                self._impatient = None
        if cell.kill:
            ended.killed = cell.kill
        worker.stdout.redirect(lambda _data: None, lambda: True)
        worker.stderr.redirect(lambda _data: None, lambda: True)
        execution.resume_reading = lambda: None
        execution.finish(ended)

    def _redirect(self, worker: Process, cell: Cell) -> None:
        execution = cell.execution

        def sink(source: int, data: bytes) -> None:
            execution.output.write(source, data)
            execution.notify()

        worker.stdout.redirect(lambda data: sink(STDOUT, data), execution.output.room)
        worker.stderr.redirect(lambda data: sink(STDERR, data), execution.output.room)

        def resume() -> None:
            worker.stdout.resume()
            worker.stderr.resume()

        execution.resume_reading = resume

    async def _collect(self, worker: Process, execution: Execution) -> pb.ExecutionEnded:
        while True:
            kind, payload = await worker.receive()
            worker.stdout.drain()  # what was written before this frame is in the pipe by now
            worker.stderr.drain()
            if kind == "E":
                return _ended(execution, json.loads(payload))
            header, _, data = payload.partition(b"\n")
            await _add_result(execution, json.loads(header), data)

    async def _bury(self, worker: Process) -> pb.ExecutionEnded:
        self._worker = None
        if worker.process.returncode is None and worker.replies.at_eof() is False:
            worker.process.kill()
        status = await worker.process.wait()
        worker.stdout.drain()
        worker.stderr.drain()
        worker.close()
        ended = pb.ExecutionEnded(state_lost=True)
        if status < 0:
            ended.signal = -status
        else:
            ended.exit_code = status
        return ended

    def _stop(self, cell: Cell, reason: pb.KillReason.ValueType) -> None:
        """Interrupt the cell if it runs, and kill the worker if that does not help; drop it if it waits."""
        if cell.execution.end is not None or cell.kill:
            return
        cell.kill = reason
        if cell is not self._current:
            cell.execution.finish(pb.ExecutionEnded(killed=reason))
        elif self._worker:
            self._worker.process.send_signal(signal.SIGINT)
            loop = asyncio.get_running_loop()
            self._impatient = loop.call_later(INTERRUPT_GRACE_SECONDS, self._worker.process.kill)

    def _signal(self, cell: Cell, number: int) -> None:
        if cell is self._current and self._worker:
            self._worker.process.send_signal(number)


def _request(cell: Cell) -> bytes:
    stdin = base64.b64encode(cell.stdin).decode()
    return json.dumps({"source": cell.source, "env": cell.env, "cwd": cell.cwd, "stdin": stdin}).encode()


async def _add_result(execution: Execution, header: dict[str, object], data: bytes) -> None:
    result_id, mime_type, is_value = int(str(header["id"])), str(header["mime"])[:256], bool(header["value"])
    for offset in range(0, len(data) or 1, CHUNK_BYTES):
        piece = data[offset : offset + CHUNK_BYTES]
        last = offset + len(piece) == len(data)
        await execution.room()
        execution.output.add_result(result_id, mime_type, offset, piece, last, is_value)
        execution.notify()


def _ended(execution: Execution, end: dict[str, object]) -> pb.ExecutionEnded:
    error = end.get("error")
    if isinstance(error, dict):
        fields = {name: str(error[name]) for name in ("name", "value", "traceback")}
        execution.output.add_error(pb.ExecutionError(**fields).SerializeToString())
    return pb.ExecutionEnded(
        exit_code=max(-(1 << 31), min(int(str(end["exit"])), (1 << 31) - 1)),
        cpu_seconds=float(str(end["cpu"])),
        peak_memory_bytes=max(0, int(str(end["memory"]))),
    )
