"""Commands: programs in process groups of their own, in parallel with everything else."""

import asyncio
import contextlib
import os
import resource
import signal

from guest_agent.execution import Execution
from guest_agent.launch import Launcher
from guest_agent.output import STDERR, STDOUT
from guest_agent.pump import Pump
from sandpool.v1 import execution_pb2 as pb

KILL_GRACE_SECONDS = 2.0
# A grandchild may keep the pipes open after the command has ended: output is waited for this long, then cut.
LINGER_SECONDS = 0.2
COULD_NOT_START = 127


class CommandRun:
    """One command from start to its terminal event."""

    def __init__(self, request: pb.ExecuteRequest, execution: Execution, launcher: Launcher, timeout: float) -> None:
        self._request = request
        self._execution = execution
        self._launcher = launcher
        self._timeout = timeout
        self._kill: pb.KillReason.ValueType = pb.KILL_REASON_UNSPECIFIED
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Run to the end. A program that cannot be started: exit code 127 and a line on stderr, as in a shell."""
        execution = self._execution
        execution.start()
        execution.cancel, execution.signal = self._stop, self._signal
        stdout_in, stdout_out = os.pipe()
        stderr_in, stderr_out = os.pipe()
        pumps = [self._pump(stdout_in, STDOUT), self._pump(stderr_in, STDERR)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            self._process = await self._start(stdout_out, stderr_out)
        except (OSError, ValueError) as error:
            execution.output.write(STDERR, f"{_arguments(self._request)[0]}: {error}\n".encode())
            execution.finish(pb.ExecutionEnded(exit_code=COULD_NOT_START))
            return
        finally:
            os.close(stdout_out)
            os.close(stderr_out)
            if self._process is None:
                for pump in pumps:
                    pump.close()

        def resume() -> None:
            for pump in pumps:
                pump.resume()

        execution.resume_reading = resume
        await self._wait(self._process, pumps)
        execution.finish(self._ended(self._process, before))

    def _pump(self, descriptor: int, source: int) -> Pump:
        def sink(data: bytes) -> None:
            self._execution.output.write(source, data)
            self._execution.notify()

        return Pump(descriptor, sink, self._execution.output.room)

    async def _start(self, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        wants_stdin = bool(self._request.stdin) or self._request.keep_stdin_open
        return await self._launcher.start(
            self._execution.execution_id,
            _arguments(self._request),
            env=dict(self._request.env),
            cwd=self._request.cwd,
            streams={
                "stdin": asyncio.subprocess.PIPE if wants_stdin else asyncio.subprocess.DEVNULL,
                "stdout": stdout,
                "stderr": stderr,
            },
        )

    async def _wait(self, process: asyncio.subprocess.Process, pumps: list[Pump]) -> None:
        timer = asyncio.get_running_loop().call_later(self._timeout, self._stop, pb.KILL_REASON_TIMEOUT)
        try:
            if process.stdin is not None:
                process.stdin.write(self._request.stdin)
                self._execution.stdin = process.stdin.transport
                if not self._request.keep_stdin_open:
                    process.stdin.close()
            await process.wait()
        finally:
            timer.cancel()
        if self._kill:
            self._signal(signal.SIGKILL)  # whatever is left of the group
        for pump in pumps:
            await self._rest(pump)
        for pump in pumps:
            pump.drain()
            pump.close()

    async def _rest(self, pump: Pump) -> None:
        """Wait for the end of a pipe, at the pace of the readers; not for a silent grandchild that keeps it open."""
        while not pump.closed.is_set():
            try:
                await asyncio.wait_for(pump.closed.wait(), LINGER_SECONDS)
            except TimeoutError:
                if self._execution.output.room():
                    return

    def _ended(self, process: asyncio.subprocess.Process, before: resource.struct_rusage) -> pb.ExecutionEnded:
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = pb.ExecutionEnded(
            cpu_seconds=now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime,
            peak_memory_bytes=now.ru_maxrss * 1024,
        )
        status = process.returncode or 0
        if self._kill:
            ended.killed = self._kill
        elif status < 0:
            ended.signal = -status
        else:
            ended.exit_code = status
        return ended

    def _stop(self, reason: pb.KillReason.ValueType) -> None:
        if self._kill:
            return
        self._kill = reason
        self._signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(KILL_GRACE_SECONDS, self._kill_if_alive)

    def _kill_if_alive(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        """To the whole group. Its id cannot be reused while the leader is not reaped or a member lives."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _arguments(request: pb.ExecuteRequest) -> list[str]:
    if request.command.HasField("shell"):
        return ["/bin/bash", "-c", request.command.shell]
    return list(request.command.argv.values)
