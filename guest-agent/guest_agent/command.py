"""Commands: programs with processes of their own, in parallel with everything else."""

import asyncio
import contextlib
import os
import signal
import subprocess

from guest_agent.execution import Execution
from guest_agent.input_pipe import InputPipe
from guest_agent.launch import Launcher
from guest_agent.output import STDERR, STDOUT
from guest_agent.process import Program, ProgramEnd
from guest_agent.pump import Pump
from sandpool.v1 import execution_pb2 as pb

KILL_GRACE_SECONDS = 2.0
# What the command has left running may still write what belongs to it (`cmd | tee >(cat)`): for this long, then it is
# killed like everything else that is left.
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
        self._program: Program | None = None
        execution.cancel, execution.signal = self._stop, self._signal
        if request.stdin or request.keep_stdin_open:
            execution.stdin = InputPipe()
            execution.stdin.write(request.stdin)
            if not request.keep_stdin_open:
                execution.stdin.close()

    async def run(self) -> None:
        """Run to the end. A program that cannot be started: exit code 127 and a line on stderr, as in a shell."""
        execution = self._execution
        execution.start()
        stdout_in, stdout_out = os.pipe()
        stderr_in, stderr_out = os.pipe()
        pumps = [self._pump(stdout_in, STDOUT), self._pump(stderr_in, STDERR)]
        try:
            self._program, stdin = self._start(stdout_out, stderr_out)
        except (OSError, ValueError) as error:
            for pump in pumps:
                pump.close()
            if execution.stdin is not None:
                execution.stdin.abort()
            execution.output.write(STDERR, f"{_arguments(self._request)[0]}: {error}\n".encode("utf-8", "replace"))
            execution.finish(pb.ExecutionEnded(exit_code=COULD_NOT_START))
            return
        finally:
            os.close(stdout_out)
            os.close(stderr_out)

        def resume() -> None:
            for pump in pumps:
                pump.resume()

        execution.resume_reading = resume
        if self._kill:  # cancelled before there was anything to signal
            self._program.kill()
        execution.finish(self._ended(await self._wait(self._program, stdin, pumps)))

    def _pump(self, descriptor: int, source: int) -> Pump:
        def sink(data: bytes) -> None:
            self._execution.output.write(source, data)
            self._execution.notify()

        return Pump(descriptor, sink, self._execution.has_room)

    def _start(self, stdout: int, stderr: int) -> tuple[Program, int | None]:
        """The program and the descriptor of its standard input, if it has one."""
        theirs, ours = (None, None) if self._execution.stdin is None else os.pipe()
        stdin = subprocess.DEVNULL if theirs is None else theirs
        try:
            program = self._launcher.start(
                "cmd",
                _arguments(self._request),
                env=dict(self._request.env),
                cwd=self._request.cwd,
                streams={"stdin": stdin, "stdout": stdout, "stderr": stderr},
            )
        except BaseException:
            if ours is not None:
                os.close(ours)
            raise
        finally:
            if theirs is not None:
                os.close(theirs)
        return program, ours

    async def _wait(self, program: Program, stdin: int | None, pumps: list[Pump]) -> ProgramEnd:
        timer = asyncio.get_running_loop().call_later(self._timeout, self._time_out)
        try:
            if stdin is not None and self._execution.stdin is not None:
                await self._execution.stdin.connect(os.fdopen(stdin, "wb", buffering=0))
            await program.exited()
            if self._execution.stdin is not None:
                self._execution.stdin.abort()
            for pump in pumps:
                await self._rest(pump)
        finally:
            timer.cancel()
        end = await program.end()
        for pump in pumps:
            pump.drain()
            pump.close()
        return end

    async def _rest(self, pump: Pump) -> None:
        """Wait for the end of a pipe, at the pace of the readers; not for a silent grandchild that keeps it open."""
        while not pump.closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await pump.closed.wait()
                return
            if self._execution.has_room():
                return

    def _ended(self, end: ProgramEnd) -> pb.ExecutionEnded:
        ended = pb.ExecutionEnded(cpu_seconds=end.cpu_seconds, peak_memory_bytes=end.peak_memory_bytes)
        if self._kill:
            ended.killed = self._kill
        elif end.out_of_memory:
            ended.killed = pb.KILL_REASON_MEMORY
        elif end.status < 0:
            ended.signal = -end.status
        else:
            ended.exit_code = end.status
        return ended

    def _time_out(self) -> None:
        """A program that has ended by then ended by itself: only its readers are not waited for any longer."""
        if self._program is not None and not self._program.running:
            self._execution.release()
        else:
            self._stop(pb.KILL_REASON_TIMEOUT)

    def _stop(self, reason: pb.KillReason.ValueType) -> None:
        if self._kill:
            return
        self._kill = reason
        self._execution.release()
        self._signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(KILL_GRACE_SECONDS, self._kill_if_alive)

    def _kill_if_alive(self) -> None:
        if self._program is not None and self._program.running:
            self._program.kill()

    def _signal(self, number: int) -> None:
        if self._program is not None and self._program.running:
            self._program.signal(number)


def _arguments(request: pb.ExecuteRequest) -> list[str]:
    if request.command.HasField("shell"):
        return ["/bin/bash", "-c", request.command.shell]
    return list(request.command.argv.values)
