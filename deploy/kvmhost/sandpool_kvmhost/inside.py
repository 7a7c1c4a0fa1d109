#!/usr/bin/python3
"""What runs inside the emulated host on behalf of the command outside. Stands alone: only Python's own library."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import suppress
from pathlib import Path

RUNS = Path("/sys/fs/cgroup/runs")
# A test run that is told to end cleans up after itself first.
STOP_SECONDS = 20.0
COPY_BYTES = 1 << 20
PLUG_SECONDS = 10.0


def sync(tree: Path) -> int:
    """Standard input: one line of JSON (what goes, how the tree is installed), then a tar archive of what comes."""
    order = json.loads(sys.stdin.buffer.readline())
    tree.mkdir(parents=True, exist_ok=True)
    for name in order["removed"]:
        (tree / name).unlink(missing_ok=True)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        archive.extraction_filter = lambda member, _: member  # the user's own tree, links and all
        archive.extractall(tree)
    _install(tree, order["name"], order["version"], order["paths"])
    return 0


def _install(tree: Path, name: str, version: str, paths: list[str]) -> None:
    """A virtual environment like the one outside, by hand: its packages are the system's and the tree's."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = tree / ".venv"
    packages = environment / "lib" / python / "site-packages"
    about = packages / f"{name}-{version}.dist-info"
    for directory in (environment / "bin", about):
        directory.mkdir(parents=True, exist_ok=True)
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    for link in ("python", "python3"):
        with suppress(FileExistsError):
            (environment / "bin" / link).symlink_to("/usr/bin/python3")
    (packages / "tree.pth").write_text("".join(f"{tree / path}\n" for path in paths))
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    runner = environment / "bin" / "pytest"
    runner.write_text(f"#!{environment / 'bin' / 'python'}\nimport pytest\nraise SystemExit(pytest.console_main())\n")
    runner.chmod(0o755)


def fetch(serial: str, size: int, target: Path) -> int:
    """Copy the first size bytes of the disk of that serial number to the file target."""
    deadline = time.monotonic() + PLUG_SECONDS
    while (disk := _disk(serial)) is None:
        if time.monotonic() > deadline:
            print(f"kvmhost: no disk has the serial number {serial}", file=sys.stderr)
            return 1
        time.sleep(0.05)  # the kernel is still looking at it
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with disk.open("rb") as source, part.open("wb") as sink:
        while size and (data := source.read(min(size, COPY_BYTES))):
            sink.write(data)
            size -= len(data)
    part.rename(target)
    return 1 if size else 0


def _disk(serial: str) -> Path | None:
    for path in Path("/sys/block").glob("vd*/serial"):
        if path.read_text().strip() == serial:
            return Path("/dev") / path.parent.name
    return None


def run(tree: Path, command: list[str]) -> int:
    """In the tree, in a cgroup of its own: nothing that it started is left. Ends when standard input does."""
    group = RUNS / str(os.getpid())
    group.mkdir()
    path = f"{tree}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {**os.environ, "PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    # It enters the group by itself, before it is the command.
    enter = ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group)]
    try:
        child = subprocess.Popen(
            [*enter, *command], cwd=tree, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        threading.Thread(target=_end_with_stdin, args=(child, group), daemon=True).start()
        status = child.wait()
        return status if status >= 0 else 128 - status
    finally:
        _kill(group)


def _end_with_stdin(child: "subprocess.Popen[bytes]", group: Path) -> None:
    while os.read(0, 4096):
        continue
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGINT)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(group)


def _kill(group: Path) -> None:
    with suppress(FileNotFoundError):
        (group / "cgroup.kill").write_text("1")
        for directory in (*sorted(group.rglob("*/"), reverse=True), group):
            if directory.is_dir():
                _remove(directory)


def _remove(directory: Path) -> None:
    """When its last process is gone, which the kernel says by an event."""
    with (directory / "cgroup.events").open() as events:
        watch = select.poll()
        watch.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            watch.poll(1000)
            events.seek(0)
    with suppress(OSError):
        directory.rmdir()


def main() -> int:
    """One of the functions above, by name."""
    match sys.argv[1:]:
        case ["sync", tree]:
            return sync(Path(tree))
        case ["fetch", serial, size, target]:
            return fetch(serial, int(size), Path(target).expanduser())
        case ["forget", target]:
            shutil.rmtree(Path(target).expanduser(), ignore_errors=True)
            return 0
        case ["run", tree, *command] if command:
            return run(Path(tree), command)
    print("kvmhost: unknown order", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
