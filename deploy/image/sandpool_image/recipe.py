"""Runs a recipe, which makes a root directory of Debian's layer and our files, as a process of its own.

Files in a root belong to several users: as root it is an ordinary process, else it runs in a user namespace, where the
user's range of ids stands for them.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandpool_image.kernel import NoKernel, extract_vmlinux
from sandpool_image.steps import BuildFailed, Progress, environment, run

NAMESPACE = ("unshare", "--user", "--map-root-user", "--map-auto")
WORK_PREFIX = ".build-"


@dataclass(frozen=True)
class Bench:
    """Where a recipe works: root is unpacked Debian, out becomes the target, work is an empty directory."""

    root: Path
    out: Path
    work: Path
    files: Mapping[str, bytes]
    name: str


Recipe = Callable[[Bench, Progress], None]


def follow(module: str, archive: Path, files: Mapping[str, bytes], target: Path, progress: Progress) -> None:
    """Make the directory target by the recipe that module is when it is run. Raises BuildFailed."""
    prefix = () if os.geteuid() == 0 else NAMESPACE
    if prefix:
        run([*prefix, "true"], "an ordinary user needs user namespaces, the package uidmap and a line in /etc/subuid")
    command = [*prefix, sys.executable, "-m", module, str(archive), str(target)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment()) as process:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError), process.stdin as stdin:  # its exit status says more
            stdin.write(json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}))
        for line in process.stdout:
            message, fraction = json.loads(line)
            if fraction is None:
                raise BuildFailed(message)
            progress(message, fraction)
    if process.returncode != 0:
        raise BuildFailed(f"putting the image together ended with {process.returncode}")


def main(recipe: Recipe) -> int:
    """Archive and target by argument, files on standard input; progress on standard output."""
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through what cleans up
    archive, target = map(Path, sys.argv[1:])
    files = {name: base64.b64decode(data) for name, data in json.load(sys.stdin).items()}
    try:
        _make(recipe, archive, files, target)
    except (BuildFailed, NoKernel, OSError, subprocess.CalledProcessError) as error:
        _say(str(error), None)
        return 1
    return 0


def _make(recipe: Recipe, archive: Path, files: Mapping[str, bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{WORK_PREFIX}*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=WORK_PREFIX) as temporary:
        bench = Bench(Path(temporary) / "root", Path(temporary) / "out", Path(temporary) / "work", files, target.name)
        for directory in (bench.root, bench.out, bench.work):
            directory.mkdir()
        _say("unpacking", 0.6)
        # Only root may make devices, and the guest's kernel brings its own.
        run(["tar", "-xf", str(archive), "-C", str(bench.root), "--numeric-owner", "--exclude=./dev/*"], "tar")
        recipe(bench, _say)
        bench.out.rename(target)
    _say("image ready", 1.0)


def _say(message: str, fraction: float | None) -> None:
    """No fraction: it has failed."""
    print(json.dumps([message, fraction]), flush=True)


def take_kernel(bench: Bench) -> None:
    """The unpacked kernel, as out/vmlinux."""
    (bench.out / "vmlinux").write_bytes(extract_vmlinux(next((bench.root / "boot").glob("vmlinuz-*")).read_bytes()))


def install_wheels(requirements: Sequence[str], target: Path, python: str) -> None:
    """Packages of the registry into the directory target, for that version of Python. Raises BuildFailed."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as wheels:
        # The one that is there as source only.
        run([*pip, "wheel", "--no-deps", "-w", wheels, "grpclib>=0.4.8"], "pip wheel")
        for_guest = [f"--python-version={python}", "--platform=manylinux2014_x86_64", "--only-binary=:all:"]
        where = ["--target", str(target), "--find-links", wheels]
        run([*pip, "install", "--no-compile", *for_guest, *where, *requirements], "pip install")


def pack(bench: Bench) -> Path:
    """The root without what only its making took, as out/root.erofs."""
    for unwanted in ("boot", "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(bench.root / unwanted, ignore_errors=True)
    packed = bench.out / "root.erofs"
    run(["mkfs.erofs", "-x-1", "-Enoinline_data", str(packed), str(bench.root)], "mkfs.erofs")
    return packed
