"""Plugging a file in and out, against a monitor that is a script."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from sandpool_kvmhost.qmp import QmpFailed, plugged


class Monitor:
    """Answers each command: with an error for those named in refuses, else well. A device goes by an event."""

    def __init__(self, path: Path) -> None:
        self.commands: list[str] = []
        self.arguments: dict[str, dict[str, object]] = {}
        self.refuses: set[str] = set()
        self.present: set[str] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rwb") as stream:
            self._send(stream, {"QMP": {}})
            for line in stream:
                request = json.loads(line)
                self._answer(stream, request["execute"], request["arguments"])

    def _answer(self, stream: BinaryIO, command: str, arguments: dict[str, object]) -> None:
        self.commands.append(command)
        self.arguments[command] = arguments
        device = str(arguments.get("id"))
        refused = command in self.refuses or (command == "device_del" and device not in self.present)
        if command == "device_add" and not refused:
            self.present.add(device)
        if command == "device_del" and not refused:
            self._send(stream, {"event": "DEVICE_DELETED", "data": {"device": device}})
        self._send(stream, {"error": {"desc": f"no {command}"}} if refused else {"return": {}})

    @staticmethod
    def _send(stream: BinaryIO, message: dict[str, object]) -> None:
        stream.write(json.dumps(message).encode() + b"\r\n")
        stream.flush()

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Too long for a socket's address."""
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    return directory / "qmp"


@pytest.fixture
def monitor(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitor]:
    monkeypatch.chdir(path.parent)
    running = Monitor(Path(path.name))
    yield running
    running.close()


def test_a_file_comes_and_goes(monitor: Monitor, path: Path) -> None:
    with plugged(path, Path("/images/root.erofs"), "serial"):
        assert monitor.present
        assert monitor.arguments["device_add"]["serial"] == "serial"
        assert monitor.arguments["blockdev-add"]["read-only"] is True
    assert monitor.commands == [
        "qmp_capabilities", "device_del", "blockdev-del", "blockdev-add", "device_add", "device_del", "blockdev-del"
    ]  # fmt: skip


def test_what_fails_inside_unplugs_too(monitor: Monitor, path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), plugged(path, Path("/x"), "s"):
        raise KeyboardInterrupt
    assert monitor.commands[-2:] == ["device_del", "blockdev-del"]


def test_a_refusal_is_told_and_leaves_nothing(monitor: Monitor, path: Path) -> None:
    monitor.refuses = {"device_add"}
    with pytest.raises(QmpFailed, match="device_add: no device_add"), plugged(path, Path("/x"), "s"):
        pass
    assert monitor.commands[-1] == "blockdev-del"


def test_nobody_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(QmpFailed, match="does not answer"), plugged(path, Path("/x"), "s"):
            pass
        thread.join()
