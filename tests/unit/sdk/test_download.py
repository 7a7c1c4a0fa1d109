"""The download of Cloud Hypervisor against a server on loopback: whole, resumed, and everything that goes wrong."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sandpool.cli.download import DownloadFailed, cloud_hypervisor, download, is_there
from sandpool.cli.releases import RELEASES, Release

CONTENT = bytes(range(256)) * 2000
RELEASE = Release("vmm-static", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


class Server(ThreadingHTTPServer):
    """What it does, and which ranges it was asked for."""

    content = CONTENT
    cut_after = len(CONTENT)
    honours_ranges = True
    status = 200

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        assert self.path == "/v1/vmm-static"
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        begin = int(asked[6:-1]) if asked and self.server.honours_ranges else 0
        body = self.server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{len(self.server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bin" / "vmm"


def fetch(server: Server, target: Path, release: Release = RELEASE) -> list[int]:
    told: list[int] = []
    download(release, server.address, target, lambda have, _: told.append(have))
    return told


def names(target: Path) -> list[str]:
    """Of everything beside target."""
    return [path.name for path in target.parent.iterdir()]


def test_a_whole_one(server: Server, target: Path) -> None:
    told = fetch(server, target)
    assert (target.read_bytes(), target.stat().st_mode & 0o777, told[-1]) == (CONTENT, 0o755, len(CONTENT))
    assert is_there(RELEASE, target) and names(target) == ["vmm"]
    target.chmod(0o644)
    assert not is_there(RELEASE, target)


def test_a_broken_one_is_gone_on_with(server: Server, target: Path) -> None:
    server.cut_after = 200_000
    with pytest.raises(DownloadFailed, match="200,000 of 512,000 bytes are there"):
        fetch(server, target)
    assert not target.exists()
    with pytest.raises(DownloadFailed, match="400,000 of 512,000 bytes are there"):
        fetch(server, target)
    assert min(fetch(server, target)) > 400_000
    assert (server.asked, target.read_bytes()) == ([None, "bytes=200000-", "bytes=400000-"], CONTENT)


def test_a_server_without_ranges_begins_again(server: Server, target: Path) -> None:
    server.cut_after = 200_000
    with pytest.raises(DownloadFailed):
        fetch(server, target)
    server.cut_after, server.honours_ranges = len(CONTENT), False
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[::-1], CONTENT[:-1] + b"!"], ids=["other", "one byte"])
def test_another_content_is_thrown_away(server: Server, target: Path, damage: bytes) -> None:
    server.content = damage
    with pytest.raises(DownloadFailed, match=f"SHA-256 is {hashlib.sha256(damage).hexdigest()}"):
        fetch(server, target)
    assert names(target) == []
    server.content = CONTENT
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_what_was_in_place_stays_until_the_new_one_is_complete(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_text("old")
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadFailed):
        fetch(server, target)
    assert target.read_text() == "old"


def test_more_than_it_should_be_is_not_kept(server: Server, target: Path) -> None:
    server.content, server.cut_after = CONTENT * 2, len(CONTENT) * 2
    with pytest.raises(DownloadFailed, match="more than the 512,000 bytes"):
        fetch(server, target)
    assert sum(path.stat().st_size for path in target.parent.iterdir()) == 0


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_a_refusal_is_told(server: Server, target: Path, status: int, reason: str) -> None:
    server.status = status
    with pytest.raises(DownloadFailed, match=f"/v1/vmm-static: the server says {reason}"):
        fetch(server, target)
    assert not target.exists()


def test_a_range_that_the_server_refuses_is_forgotten(server: Server, target: Path) -> None:
    server.cut_after = 200_000
    with pytest.raises(DownloadFailed):
        fetch(server, target)
    server.cut_after, server.status = len(CONTENT), 416
    with pytest.raises(DownloadFailed, match="416"):
        fetch(server, target)
    server.status = 200
    fetch(server, target)
    assert server.asked == [None, "bytes=200000-", None]


def test_nobody_there_is_no_drama(target: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DownloadFailed, match=r"refused .*without it sandpool uses QEMU.*put it at .*/bin/vmm"):
            download(RELEASE, source, target, lambda *_: None)


def test_one_at_a_time(server: Server, target: Path) -> None:
    second: list[str] = []

    def progress(*_: int) -> None:
        if not second:
            with pytest.raises(DownloadFailed) as failed:
                download(RELEASE, server.address, target, lambda *_: None)
            second.append(str(failed.value))

    download(RELEASE, server.address, target, progress)
    assert second == ["another download of it is running"] and len(server.asked) == 1


def test_no_other_kind_of_address(target: Path) -> None:
    with pytest.raises(DownloadFailed, match="no http or https address"):
        download(RELEASE, "file:///etc", target, lambda *_: None)


def test_the_architecture_decides(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(DownloadFailed, match="no release of Cloud Hypervisor for vax"):
        cloud_hypervisor("http://127.0.0.1:1", target, lambda *_: None)
    assert all(re.fullmatch(r"[0-9a-f]{64}", release.sha256) for release in RELEASES.values())


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SANDPOOL_CLOUD_HYPERVISOR_SOURCE": "http://127.0.0.1:1"}
    for command in (["sandpool.cli.download"], ["sandpool.cli", "doctor", "--fix"]):
        done = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and "uses QEMU" in done.stderr and len(done.stderr.splitlines()) == 1, done
