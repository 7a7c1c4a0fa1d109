"""One living language worker, as the agent sees it: a program with framed pipes (worker.py says how)."""

import asyncio
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from guest_agent.input_pipe import InputPipe
from guest_agent.launch import Launcher
from guest_agent.process import Program, ProgramEnd
from guest_agent.pump import Pump
from guest_agent.worker_pipe import SEED_SIGNAL

# Frames are hostile, as the worker runs user code. What is large (results) comes outside of them, in pieces.
MAX_FRAME_BYTES = 1 << 20
COMPLAINT_BYTES = 4096
# The worker finds its own code by it, and takes it out of its environment then.
PATH_VARIABLE = "PYTHONPATH"
BUFFER_BYTES = 256 << 10
# A worker whose pipe has ended is ending: for so long its own exit code is waited for.
EXIT_SECONDS = 1.0
# The cell may not have begun when SEED_SIGNAL came: it is said again.
SEED_AGAIN_SECONDS = 0.2


class WorkerLost(Exception):
    """The worker has ended, or speaks nonsense."""


def _ignore(_data: bytes) -> None:
    """Output of no execution."""


def _always() -> bool:
    return True


@dataclass
class WorkerProcess:
    """Owns the program and every pipe to it."""

    program: Program
    requests: InputPipe
    replies: asyncio.StreamReader
    transport: asyncio.ReadTransport
    stdout: Pump
    stderr: Pump
    watcher: asyncio.Task[None] | None = None
    samples: deque[asyncio.Future[bytes]] = field(default_factory=deque)

    @classmethod
    async def start(cls, launcher: Launcher, preimport: bool) -> "WorkerProcess":
        """Start a worker and wait until it is ready. Raises OSError, WorkerLost."""
        requests_in, requests_out = os.pipe()
        replies_in, replies_out = os.pipe()
        stdout_in, stdout_out = os.pipe()
        stderr_in, stderr_out = os.pipe()
        # -P: a file of the session may be called random.py, and it is not meant for the worker.
        arguments = [sys.executable, "-u", "-P", "-m", "guest_agent.worker", str(requests_in), str(replies_out)]
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": stdout_out,
            "stderr": stderr_out,
            "pass_fds": (requests_in, replies_out),
        }
        try:
            program = launcher.start(
                "python",
                arguments + ["--preimport"] * preimport,
                leave_memory=False,
                env={PATH_VARIABLE: os.environ[PATH_VARIABLE]} if PATH_VARIABLE in os.environ else {},
                streams=streams,
            )
        except BaseException:
            for descriptor in (requests_out, replies_in, stdout_in, stderr_in):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (requests_in, replies_out, stdout_out, stderr_out):
                os.close(descriptor)
        replies = asyncio.StreamReader(limit=BUFFER_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(replies), os.fdopen(replies_in, "rb")
        )
        requests = InputPipe()
        await requests.connect(os.fdopen(requests_out, "wb", buffering=0))
        stdout, stderr = (Pump(descriptor, _ignore, _always) for descriptor in (stdout_in, stderr_in))
        worker = cls(program, requests, replies, transport, stdout, stderr)
        worker.watcher = asyncio.create_task(worker._watch())
        said = bytearray()
        worker.redirect(_ignore, said.extend, lambda: len(said) < MAX_FRAME_BYTES)
        try:
            await worker.receive()  # ready
        except WorkerLost:
            await worker.bury()
            raise WorkerLost(said[-COMPLAINT_BYTES:].decode("utf-8", "replace")) from None
        worker.ignore_output()
        return worker

    async def _watch(self) -> None:
        """A dead worker's children may hold its pipe open: its end is made sure."""
        await self.program.exited()
        self.program.kill()
        await asyncio.sleep(EXIT_SECONDS)
        self.replies.feed_eof()

    async def receive(self) -> tuple[str, bytes]:
        """The next frame. Raises WorkerLost."""
        kind, length = struct.unpack(">BI", await self.receive_bytes(5))
        if length > MAX_FRAME_BYTES:
            raise WorkerLost
        return chr(kind), await self.receive_bytes(length)

    async def receive_bytes(self, size: int) -> bytes:
        """Exactly size bytes: of a frame, or of what follows one. Raises WorkerLost."""
        try:
            return await self.replies.readexactly(size)
        except asyncio.IncompleteReadError:
            raise WorkerLost from None

    def send(self, kind: str, payload: bytes) -> None:
        """Queue a request."""
        self.requests.write(struct.pack(">BI", ord(kind), len(payload)) + payload)

    async def seed_in_cell(self, seed: bytes) -> bytes:
        """Reseed while a cell runs, whose owner takes the sample that comes among its frames. Raises WorkerLost."""
        sample: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.samples.append(sample)
        self.send("S", seed)
        while not sample.done():
            self.program.signal_leader(SEED_SIGNAL)
            await asyncio.wait([sample], timeout=SEED_AGAIN_SECONDS)
        return sample.result()

    def take_sample(self, sample: bytes) -> None:
        """The answer to the oldest seed_in_cell. Raises WorkerLost if there is none."""
        if not self.samples:
            raise WorkerLost
        asked = self.samples.popleft()
        if not asked.done():
            asked.set_result(sample)

    async def take_late_samples(self) -> None:
        """The cell has ended, so the worker answers now what it was asked. Raises WorkerLost, TimeoutError."""
        if not self.samples:
            return
        async with asyncio.timeout(EXIT_SECONDS):
            while self.samples:
                self.take_sample((await self.receive())[1])

    def redirect(
        self, stdout: Callable[[bytes], None], stderr: Callable[[bytes], None], room: Callable[[], bool]
    ) -> None:
        """Where output goes from here on."""
        self.stdout.redirect(stdout, room)
        self.stderr.redirect(stderr, room)

    def ignore_output(self) -> None:
        """What threads and children write between two cells goes nowhere."""
        self.redirect(_ignore, _ignore, _always)

    def resume(self) -> None:
        """Readers have moved."""
        self.stdout.resume()
        self.stderr.resume()

    def drain(self) -> None:
        """Take what is in the pipes now."""
        self.stdout.drain()
        self.stderr.drain()

    async def bury(self) -> ProgramEnd:
        """End it, if it has not ended, with all that it has started, and give everything back."""
        if not self.replies.at_eof():
            self.program.signal_leader(signal.SIGKILL)
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await self.program.exited()
        except TimeoutError:
            self.program.signal_leader(signal.SIGKILL)  # it has only closed its pipe
            await self.program.exited()
        if self.watcher is not None:
            self.watcher.cancel()
        for asked in self.samples:
            if not asked.done():
                asked.set_exception(WorkerLost())
        end = await self.program.end()
        self.transport.close()
        self.requests.abort()
        self.drain()
        self.stdout.close()
        self.stderr.close()
        return end
