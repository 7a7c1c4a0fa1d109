"""The services of an embedded installation as child processes: started in order, restarted, ended in order."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.2, 10.0
# A child that has run for so long begins again with the first backoff.
STABLE_SECONDS = 30.0
LOG_TAIL_BYTES = 2000


class StartFailed(Exception):
    """A service ended before it was ready; the message has the end of its log."""


@dataclass
class Service:
    """One child. settings become its TOML file. address is where it serves, once it is ready."""

    name: str
    module: str
    settings: Mapping[str, str | int | bool | list[str]]
    address: str = ""
    process: asyncio.subprocess.Process | None = None
    started_at: float = 0.0
    failures: int = 0
    # It owns what outlives it: started once more at the end if it was killed, to clean up.
    sweep: bool = False


class Supervisor:
    """Owns the children. Their lifeline is a pipe that only this process can write to: they end when it does."""

    def __init__(self, state_dir: Path, services: list[Service], report: Callable[[str], None]) -> None:
        self._state_dir = state_dir
        self._services = services
        self._report = report
        self._lifeline, self._hold = os.pipe()
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """All, one after the other. Raises StartFailed."""
        for service in self._services:
            await self._start(service)
        self._watchers = [asyncio.create_task(self._keep(service)) for service in self._services]

    async def _start(self, service: Service) -> None:
        """Raises StartFailed; then nothing of it runs."""
        try:
            await self._spawn(service)
        except OSError as error:  # a full disk, no process left
            raise StartFailed(f"{service.name} cannot be started: {error}") from error
        await self._hear(service)

    async def _spawn(self, service: Service) -> None:
        service.started_at = asyncio.get_running_loop().time()
        config, log = self._state_dir / f"{service.name}.toml", self._log(service)
        lines = [f"{key} = {json.dumps(value)}" for key, value in service.settings.items()]
        config.write_text("\n".join(lines) + "\n")
        with log.open("ab") as stderr:
            service.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", service.module, "--config", str(config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                pass_fds=(self._lifeline,),
                env={**os.environ, "SANDPOOL_LIFELINE_FD": str(self._lifeline), "GRPC_ENABLE_FORK_SUPPORT": "0"},
                start_new_session=True,  # Ctrl-C is for us: the children end in order
            )

    async def _hear(self, service: Service) -> None:
        """Until it says where it serves. Raises StartFailed."""
        assert service.process is not None
        assert service.process.stdout is not None
        try:
            async with asyncio.timeout(READY_SECONDS):
                words = (await service.process.stdout.readline()).decode().split()
        except TimeoutError:
            words = []
        if words[:2] != ["ready", service.name]:
            await _end(service.process)
            raise StartFailed(f"{service.name} did not start:\n{self._tail(service)}")
        service.address = words[2]
        service.settings = {**service.settings, "listen": [service.address]}  # the same one after a restart

    async def _keep(self, service: Service) -> None:
        """Start it again whenever it dies."""
        loop = asyncio.get_running_loop()
        while True:
            assert service.process is not None
            status = await service.process.wait()
            if loop.time() - service.started_at > STABLE_SECONDS:
                service.failures = 0
            delay = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0**service.failures)
            service.failures += 1
            self._report(f"{service.name} has ended with {status}; starting it again")
            await asyncio.sleep(delay)
            try:
                await self._start(service)
                self._report(f"{service.name} serves again")
            except StartFailed as error:
                self._report(str(error))

    async def stop(self) -> None:
        """All, in the opposite order; nothing is left. Idempotent."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers = []
        for service in reversed(self._services):
            if service.process is not None:
                await _end(service.process)
        for service in self._services:
            if service.sweep and service.process is not None and service.process.returncode != 0:
                await self._sweep(service)

    async def _sweep(self, service: Service) -> None:
        """A child that was killed may have left something: its successor finds it again, and ends it in good order."""
        with suppress(StartFailed):
            await self._start(service)
            assert service.process is not None
            await _end(service.process)

    def close(self) -> None:
        """After stop()."""
        os.close(self._hold)
        os.close(self._lifeline)

    def _log(self, service: Service) -> Path:
        return self._state_dir / f"{service.name}.log"

    def _tail(self, service: Service) -> str:
        data = self._log(service).read_bytes()[-LOG_TAIL_BYTES:]
        return data.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
