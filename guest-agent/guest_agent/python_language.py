"""Python code: cells run in the worker first in, first out; a dead worker is replaced.

What threads and children of a cell write after its end goes nowhere, or to the cell that runs then. Children that a
cell has left running live on with the worker; they are killed with it, and when a cell is killed (in a VM).
"""

import asyncio
import base64
import contextlib
import json
import logging
import math
import signal
from collections import deque
from dataclasses import dataclass

from guest_agent.execution import CHUNK_BYTES, Execution
from guest_agent.launch import Launcher
from guest_agent.output import STDERR, STDOUT
from guest_agent.worker_process import WorkerLost, WorkerProcess
from sandpool.v1 import execution_pb2 as pb

_log = logging.getLogger(__name__)

QUEUE_LENGTH = 16
# A worker that does not answer an interrupt in this time is killed.
INTERRUPT_GRACE_SECONDS = 2.0
NAME_BYTES, VALUE_BYTES, TRACEBACK_BYTES = 256, 16 << 10, 64 << 10
# What reading a frame raises that user code has written.
NONSENSE = (ValueError, KeyError, TypeError, RecursionError)


class QueueFull(Exception):
    """QUEUE_LENGTH cells wait already."""


@dataclass(eq=False)
class Cell:
    """One run of code."""

    execution: Execution
    source: str
    env: dict[str, str]
    cwd: str | None
    stdin: bytes
    timeout_seconds: float
    kill: pb.KillReason.ValueType = pb.KILL_REASON_UNSPECIFIED


class PythonLanguage:
    """Owns the worker. run() is the one task that talks to it."""

    def __init__(self, launcher: Launcher, preimport: bool) -> None:
        """preimport: the first worker, which the template is frozen with, imports the popular libraries."""
        self._launcher = launcher
        self._preimport = preimport
        self._queue: deque[Cell] = deque()
        self._queued = asyncio.Event()
        self._worker: WorkerProcess | None = None
        self._lock = asyncio.Lock()
        self._current: Cell | None = None
        self._impatient: asyncio.TimerHandle | None = None

    def submit(self, cell: Cell) -> None:
        """Queue a cell. Raises QueueFull."""
        if len(self._queue) >= QUEUE_LENGTH:
            raise QueueFull
        self._queue.append(cell)
        self._queued.set()
        cell.execution.cancel = lambda reason: self._stop(cell, reason)
        cell.execution.signal = lambda number: self._signal(cell, number)

    async def run(self) -> None:
        """Run cells until cancelled."""
        while True:
            cell = await self._next()
            async with self._lock:
                try:
                    await self._run_cell(cell)
                except Exception:
                    _log.exception("a cell failed inside the agent")
                    self._refuse(cell.execution, "the agent failed", pb.ExecutionEnded(exit_code=1))
                    if self._worker is not None:
                        await self._bury(self._worker)

    async def _next(self) -> Cell:
        while not self._queue:
            self._queued.clear()
            await self._queued.wait()
        return self._queue.popleft()

    async def seed(self, seed: bytes) -> bytes:
        """Reseed the worker's generators; starts the worker if there is none. Returns a sample of 32 bytes.

        A cell that runs goes on; while it is in code that is not Python's the answer waits. Raises OSError, WorkerLost.
        """
        if self._current is not None and self._worker is not None:
            return (await self._worker.seed_in_cell(seed))[:32]
        async with self._lock:
            worker = await self._ensure()
            worker.send("S", seed)
            _, sample = await worker.receive()
            return sample[:32]

    async def _ensure(self) -> WorkerProcess:
        if self._worker is None:
            preimport, self._preimport = self._preimport, False  # later ones should be there soon
            self._worker = await WorkerProcess.start(self._launcher, preimport)
        return self._worker

    async def _run_cell(self, cell: Cell) -> None:
        execution = cell.execution
        try:
            worker = await self._ensure()
        except (OSError, WorkerLost) as error:
            self._refuse(execution, f"the Python worker does not start: {error}", pb.ExecutionEnded(exit_code=1))
            return
        if execution.end is not None:
            return  # cancelled while it waited
        if not worker.program.running:
            ended = await self._bury(worker)
            self._refuse(execution, "the Python worker ended before this cell: its variables are gone", ended)
        else:
            execution.start()
            self._current = cell
            try:
                ended = await self._converse(worker, cell)
            finally:
                self._current = None
                if self._impatient:
                    self._impatient.cancel()
                    self._impatient = None
            worker.ignore_output()
            execution.finish(ended)
        if self._worker is None:
            with contextlib.suppress(OSError, WorkerLost):  # the next cell will tell
                await self._ensure()

    def _refuse(self, execution: Execution, message: str, ended: pb.ExecutionEnded) -> None:
        """The cell does not run."""
        if execution.end is None:
            execution.output.write(STDERR, f"{message}\n".encode("utf-8", "replace"))
            ended.state_lost = True
            execution.finish(ended)

    async def _converse(self, worker: WorkerProcess, cell: Cell) -> pb.ExecutionEnded:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(cell.timeout_seconds, self._stop, cell, pb.KILL_REASON_TIMEOUT)
        _redirect(worker, cell.execution)
        worker.program.mark()
        worker.program.signal_leader(signal.SIGCONT)  # other user code may have stopped it
        try:
            worker.send("X", _request(cell))
            ended = await _collect(worker, cell.execution)
            await worker.take_late_samples()
            ended.peak_memory_bytes = worker.program.peak_memory_bytes() or ended.peak_memory_bytes
            if cell.kill:
                worker.program.kill_offspring()
        except (WorkerLost, TimeoutError, *NONSENSE):
            ended = await self._bury(worker)
        finally:
            timer.cancel()
        if cell.kill:
            ended.killed = cell.kill
        return ended

    async def _bury(self, worker: WorkerProcess) -> pb.ExecutionEnded:
        self._worker = None
        end = await worker.bury()
        ended = pb.ExecutionEnded(state_lost=True, cpu_seconds=end.cpu_seconds, peak_memory_bytes=end.peak_memory_bytes)
        if end.out_of_memory:
            ended.killed = pb.KILL_REASON_MEMORY
        elif end.status < 0:
            ended.signal = -end.status
        else:
            ended.exit_code = end.status
        return ended

    def _stop(self, cell: Cell, reason: pb.KillReason.ValueType) -> None:
        """Interrupt the cell if it runs, and kill the worker if that does not help; drop it if it waits."""
        if cell.execution.end is not None or cell.kill:
            return
        cell.kill = reason
        cell.execution.release()
        if cell is not self._current:
            if cell in self._queue:  # else it is about to run
                self._queue.remove(cell)
            cell.execution.finish(pb.ExecutionEnded(killed=reason))
        elif self._worker:
            program = self._worker.program
            program.signal_leader(signal.SIGINT)
            loop = asyncio.get_running_loop()
            self._impatient = loop.call_later(INTERRUPT_GRACE_SECONDS, program.signal_leader, signal.SIGKILL)

    def _signal(self, cell: Cell, number: int) -> None:
        if cell is self._current and self._worker:
            self._worker.program.signal_leader(number)


def _redirect(worker: WorkerProcess, execution: Execution) -> None:
    def sink(source: int, data: bytes) -> None:
        execution.output.write(source, data)
        execution.notify()

    worker.redirect(lambda data: sink(STDOUT, data), lambda data: sink(STDERR, data), execution.has_room)
    execution.resume_reading = worker.resume


def _request(cell: Cell) -> bytes:
    stdin = base64.b64encode(cell.stdin).decode()
    return json.dumps({"source": cell.source, "env": cell.env, "cwd": cell.cwd, "stdin": stdin}).encode()


async def _collect(worker: WorkerProcess, execution: Execution) -> pb.ExecutionEnded:
    """Pass results on until the end of the cell. Raises WorkerLost, and NONSENSE."""
    while True:
        kind, payload = await worker.receive()
        worker.drain()  # what was written before this frame is in the pipe by now
        if kind == "E":
            return _ended(execution, json.loads(payload))
        if kind == "S":
            worker.take_sample(payload)
            continue
        await _add_result(worker, execution, json.loads(payload))


async def _add_result(worker: WorkerProcess, execution: Execution, header: dict[str, object]) -> None:
    result_id, mime_type, size = int(str(header["id"])), _text(header["mime"], NAME_BYTES), int(str(header["size"]))
    if not 1 <= result_id < 1 << 32:
        raise ValueError("no result id of ours")
    is_value, offset, last = bool(header["value"]), 0, False
    while not last:
        piece = await worker.receive_bytes(min(CHUNK_BYTES, size - offset))
        last = offset + len(piece) == size
        await execution.room()
        execution.output.add_result(result_id, mime_type, offset, piece, last, is_value)
        execution.notify()
        offset += len(piece)


def _ended(execution: Execution, end: dict[str, object]) -> pb.ExecutionEnded:
    cpu_seconds = float(str(end["cpu"]))
    if not 0 <= cpu_seconds < math.inf:  # nor is it a number at all
        raise ValueError("no CPU time")
    ended = pb.ExecutionEnded(
        exit_code=max(-(1 << 31), min(int(str(end["exit"])), (1 << 31) - 1)),
        cpu_seconds=cpu_seconds,
        peak_memory_bytes=max(0, int(str(end["memory"]))),
    )
    error = end.get("error")
    if isinstance(error, dict):
        told = pb.ExecutionError(
            name=_text(error["name"], NAME_BYTES),
            value=_text(error["value"], VALUE_BYTES),
            traceback=_text(error["traceback"], TRACEBACK_BYTES),
        )
        execution.output.add_error(told.SerializeToString())
    return ended


def _text(value: object, most: int) -> str:
    """Valid UTF-8 of at most that many bytes: the worker's text may hold half a surrogate pair."""
    return str(value).encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
