"""The tunnel beside this agent: found again after a restart, so that no stream is cut; started if there is none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from node_agent import metrics
from node_agent.drivers.process import recording, start_time

log = structlog.get_logger("tunnel_process")

RECORD_FILE = "tunnel.json"
RETRY_SECONDS = 1.0


class TunnelFailed(Exception):
    """It did not start; its log says why."""


class TunnelProcess:
    """One tunnel per state directory, watched by pidfd."""

    def __init__(self, state_dir: Path, listen: str, metrics_listen: str = "") -> None:
        self._state_dir = state_dir
        self._listen = listen
        self._metrics_listen = metrics_listen
        self._pid = 0
        self.address = ""
        self._ended = asyncio.Event()

    async def ensure(self) -> str:
        """The address of the tunnel, adopted or started. Raises TunnelFailed."""
        with suppress(OSError, ValueError, KeyError):
            record = json.loads((self._state_dir / RECORD_FILE).read_text())
            if start_time(record["pid"]) == record["start_time"]:
                self._watch(record["pid"])
                self.address = str(record["address"])
                return self.address
        return await self._start(self._listen)

    async def keep(self, tell: Callable[[bool, str], None]) -> None:
        """Until cancelled: start it again at its address whenever it dies. tell hears whether it is there, else why."""
        while True:
            tell(True, "")
            await self._ended.wait()
            tell(False, "it died and is being started again")
            await self._start_again(tell)
            metrics.TUNNEL_RESTARTS.inc()

    async def _start_again(self, tell: Callable[[bool, str], None]) -> None:
        while True:
            try:
                await self._start(self.address)
                return
            except (TunnelFailed, OSError) as error:
                log.error("tunnel_not_started", error=str(error))
                tell(False, str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _start(self, listen: str) -> str:
        arguments = ["--listen", listen, "--vms", str(self._state_dir / "vms"), "--keys", str(self._state_dir / "keys")]
        if self._metrics_listen:
            arguments += ["--metrics-listen", self._metrics_listen]
        process = self._spawn([sys.executable, "-m", "node_agent.tunnel", "--await-record", *arguments])
        assert process.stdin is not None and process.stdout is not None
        # Killed before its pipes are closed: a thread that still reads from one would not let go of it.
        with process.stdout as stdout, process.stdin as stdin, recording(process):
            words = (await asyncio.to_thread(stdout.readline)).split()
            if words[:2] != [b"ready", b"tunnel"]:
                raise TunnelFailed(f"the tunnel did not start; see {self._state_dir / 'tunnel.log'}")
            address = words[2].decode()
            self._record(process.pid, address)
            stdin.write(b"recorded\n")
            stdin.flush()
            self._watch(process.pid)
        self.address = address
        return address

    def _record(self, pid: int, address: str) -> None:
        """Raises OSError."""
        part = self._state_dir / f"{RECORD_FILE}.part"
        part.write_text(json.dumps({"pid": pid, "start_time": start_time(pid), "address": address}))
        part.rename(self._state_dir / RECORD_FILE)

    def _spawn(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self._state_dir / "tunnel.log").open("ab") as log:
            return subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )

    def _watch(self, pid: int) -> None:
        descriptor, loop = os.pidfd_open(pid), asyncio.get_running_loop()
        self._pid = pid
        self._ended.clear()

        def reap() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            with suppress(ChildProcessError):  # an adopted one is not our child
                os.waitpid(pid, os.WNOHANG)
            self._ended.set()

        loop.add_reader(descriptor, reap)

    async def stop(self) -> None:
        """End it. Only an embedded installation does: streams are cut."""
        if self._pid and not self._ended.is_set():
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            await self._ended.wait()
        (self._state_dir / RECORD_FILE).unlink(missing_ok=True)
