"""Plugs a file into the running host as a disk, and out again, by QEMU's monitor."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sandpool_kvmhost.command import SLOT

TIMEOUT_SECONDS = 30.0
# A reply of the monitor is a line, and short.
MAX_LINE = 1 << 20
DISK, NODE = "plugged", "plugged-file"


class QmpFailed(RuntimeError):
    """QEMU refused, or did not answer."""


class Monitor:
    """One connection. QEMU serves one at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_SECONDS)
        # By the directory's descriptor: the path may be longer than a socket's may be.
        directory = os.open(path.parent, os.O_PATH)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self._lines = self._socket.makefile("rb")
        self._gone: set[str] = set()

    def greet(self) -> None:
        """First. Raises QmpFailed."""
        self._read()
        self.call("qmp_capabilities")

    def close(self) -> None:
        """Twice is no harm."""
        self._lines.close()
        self._socket.close()

    def call(self, command: str, **arguments: Any) -> None:
        """Raises QmpFailed."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._read()
            if "error" in answer:
                raise QmpFailed(f"{command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return

    def until_gone(self, device: str) -> None:
        """Wait until the host has let go of a device."""
        while device not in self._gone:
            self._read()

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline(MAX_LINE)
            answer = json.loads(line)
        except (OSError, ValueError) as error:
            raise QmpFailed(f"the host's QEMU does not answer: {error}") from error
        if not isinstance(answer, dict):
            raise QmpFailed("the host's QEMU does not answer in objects")
        if answer.get("event") == "DEVICE_DELETED":
            self._gone.add(str(answer.get("data", {}).get("device")))
        return answer


@contextmanager
def plugged(monitor: Path, file: Path, serial: str) -> Iterator[None]:
    """The file is a read-only disk of the host, known by its serial number. Raises QmpFailed."""
    connection = Monitor(monitor)
    try:
        connection.greet()
        _unplug(connection)  # of a copy that was killed
        source = {"driver": "file", "filename": str(file), "read-only": True}
        connection.call("blockdev-add", driver="raw", **{"node-name": NODE, "read-only": True}, file=source)
        try:
            connection.call("device_add", driver="virtio-blk-pci", id=DISK, drive=NODE, bus=SLOT, serial=serial)
            yield
        finally:
            _unplug(connection)
    finally:
        connection.close()


def _unplug(connection: Monitor) -> None:
    """What is not there need not go."""
    with suppress(QmpFailed):
        connection.call("device_del", id=DISK)
        connection.until_gone(DISK)
    with suppress(QmpFailed):
        connection.call("blockdev-del", **{"node-name": NODE})
