"""Downloads one file of known content: resumes what is there, and puts nothing in place that is not that content."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import platform
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

from sandpool.cli.finding import CACHE
from sandpool.cli.releases import RELEASES, SOURCE, VERSION, Release

TARGET = CACHE / "bin" / "cloud-hypervisor"
# Without a byte.
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 16
_RANGE = re.compile(r"bytes (\d{1,15})-")
OFFLINE = (
    "it is an optional download: without it sandpool uses QEMU. With a copy of that file from elsewhere, "
    "put it at {target} and make it executable"
)

# Bytes that are there, of all.
Progress = Callable[[int, int], None]


class DownloadFailed(RuntimeError):
    """Nothing was put in place; the message is for humans and says what to do."""


def download(release: Release, source: str, target: Path, progress: Progress) -> None:
    """Make target from the file of that name at source. Raises DownloadFailed.

    What a broken connection has left is kept beside it, by content address, and gone on with the next time.
    """
    if not source.startswith(("https://", "http://")):
        raise DownloadFailed(f"{source!r} is no http or https address")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}-{release.sha256[:16]}.part")
    with _alone(part) as file:
        if os.fstat(file.fileno()).st_size < release.size_bytes:
            _complete(file, release, f"{source}/{release.name}", target, progress)
        _verify(file, release, part)
        os.fchmod(file.fileno(), 0o755)
        os.fsync(file.fileno())
        part.rename(target)


@contextmanager
def _alone(part: Path) -> Iterator[BufferedRandom]:
    """The file, held by one download at a time."""
    with part.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadFailed("another download of it is running") from None
        yield file


def _complete(file: BufferedRandom, release: Release, url: str, target: Path, progress: Progress) -> None:
    """From the end of file on."""
    have = os.fstat(file.fileno()).st_size
    # Of http or https, which download has made sure of.
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            if not _goes_on(response, have):
                file.truncate(0)
            _append(file, response, release, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            file.truncate(0)
        raise DownloadFailed(f"{url}: the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        have = os.fstat(file.fileno()).st_size
        raise DownloadFailed(f"{url}: {reason} ({_of(have, release)}); {OFFLINE.format(target=target)}") from error
    have = os.fstat(file.fileno()).st_size
    if have < release.size_bytes:
        raise DownloadFailed(f"{url}: the connection ended early ({_of(have, release)}); run it again to go on")


def _of(have: int, release: Release) -> str:
    return f"{have:,} of {release.size_bytes:,} bytes are there"


def _goes_on(response: http.client.HTTPResponse, have: int) -> bool:
    """Whether the response begins at our end; a server may ignore ranges."""
    if response.status != http.client.PARTIAL_CONTENT:
        return False
    begins = _RANGE.match(response.headers.get("Content-Range", ""))
    return begins is not None and int(begins[1]) == have


def _append(file: BufferedRandom, response: http.client.HTTPResponse, release: Release, progress: Progress) -> None:
    have = os.fstat(file.fileno()).st_size
    while data := response.read1(CHUNK_BYTES):
        have += len(data)
        if have > release.size_bytes:
            file.truncate(0)
            raise DownloadFailed(f"the server sends more than the {release.size_bytes:,} bytes of {release.name}")
        file.write(data)
        file.flush()
        progress(have, release.size_bytes)


def _verify(file: BufferedRandom, release: Release, part: Path) -> None:
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != release.sha256:
        part.unlink()
        raise DownloadFailed(
            f"{release.name}: its SHA-256 is {found} and should be {release.sha256}; what came was thrown away"
        )


def cloud_hypervisor(source: str, target: Path, progress: Progress) -> Release:
    """The pinned release for this machine, as target. Raises DownloadFailed."""
    release = RELEASES.get(platform.machine())
    if release is None:
        raise DownloadFailed(f"there is no release of Cloud Hypervisor for {platform.machine()}")
    if not is_there(release, target):
        download(release, source, target, progress)
    return release


def is_there(release: Release, target: Path) -> bool:
    """Whether target is that very file, and can be run."""
    try:
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == release.sha256 and os.access(target, os.X_OK)
    except OSError:
        return False


def main() -> int:
    """`make cloud-hypervisor`: into the cache, with progress on stderr."""
    try:
        cloud_hypervisor(os.environ.get("SANDPOOL_CLOUD_HYPERVISOR_SOURCE") or SOURCE, TARGET, show)
    except (DownloadFailed, OSError) as error:
        print(f"cloud-hypervisor: {error}", file=sys.stderr)
        return 1
    print(f"Cloud Hypervisor v{VERSION} is at {TARGET}")
    return 0


def show(have: int, size: int) -> None:
    """On a terminal, in one line; else only that it is complete."""
    if sys.stderr.isatty() or have == size:
        end = "\n" if have == size else "\r"
        print(f"cloud-hypervisor: {have * 100 // size:3}% of {size:,} bytes", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
