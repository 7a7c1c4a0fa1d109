"""Brings into the running host what a command needs there: a tree, its guest image, a Cloud Hypervisor binary."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from sandpool_kvmhost.host import HostFailed, Running, Say
from sandpool_kvmhost.inputs import project
from sandpool_kvmhost.qmp import plugged
from sandpool_kvmhost.tree import changes, manifest, pack

INSIDE = "/opt/kvmhost/inside.py"
BINARY = "/usr/local/bin/cloud-hypervisor"
IMAGE_FILES = ("vmlinux", "initramfs", "root.erofs", "image.json")
# virtio-blk has no longer serial numbers.
SERIAL_CHARS = 20
COPY_BYTES = 1 << 20


def send_tree(running: Running, tree: Path, say: Say) -> None:
    """What has changed since it was sent last. Raises BadTree, BadProject, HostFailed."""
    kept = running.directory / f"tree-{hashlib.sha256(os.fsencode(tree)).hexdigest()[:16]}.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    after = manifest(tree)
    todo = changes(before, after)
    if not todo.changed and not todo.removed:
        return
    about = project((tree / "pyproject.toml").read_text())
    order = {"removed": todo.removed, "name": about.name, "version": about.version, "paths": about.paths}
    say(f"sending {len(todo.changed)} files of {tree}")
    kept.unlink(missing_ok=True)  # until the host has all of it
    _into(running, [INSIDE, "sync", str(tree)], lambda sink: pack(tree, todo.changed, order, sink))
    kept.write_text(json.dumps(after))


def send_binary(running: Running, binary: Path, say: Say) -> None:
    """Of Cloud Hypervisor, unless the host has this very one."""
    kept = _kept_binary(running)
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    if kept.exists() and kept.read_text() == digest:
        return
    say(f"sending {binary}")
    # In one step, as the old one may be running.
    script = 'cat >"$0.part" && chmod 755 "$0.part" && mv "$0.part" "$0"'
    _into(running, ["sh", "-c", script, BINARY], lambda sink: _copy(binary, sink))
    kept.write_text(digest)


def has_binary(running: Running) -> bool:
    """Whether one was sent since the host has booted."""
    return _kept_binary(running).exists()


def _kept_binary(running: Running) -> Path:
    return running.directory / "cloud-hypervisor.sha256"


def _copy(path: Path, sink: BinaryIO) -> None:
    with path.open("rb") as source:
        while data := source.read(COPY_BYTES):
            sink.write(data)


def _into(running: Running, words: list[str], write: Callable[[BinaryIO], None]) -> None:
    """Run words in the host with what write writes as standard input."""
    with subprocess.Popen(running.way.command(words), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            with cast(BinaryIO, process.stdin) as sink:
                write(sink)
        except BrokenPipeError:
            pass  # its exit status says more
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise HostFailed(f"{' '.join(words[:2])} in the host ended with {process.returncode}")


def send_image(running: Running, image: Path, say: Say) -> None:
    """The guest image of a tree, by its content address. Raises HostFailed, QmpFailed."""
    kept = running.directory / f"image-{image.name}"
    if kept.exists():
        return
    for name in IMAGE_FILES:
        file, serial = image / name, f"{name}-{image.name}"[:SERIAL_CHARS]
        say(f"copying {name} of the guest image ({file.stat().st_size >> 20} MiB)")
        order = [INSIDE, "fetch", serial, str(file.stat().st_size), f"~/.cache/sandpool/images/{image.name}/{name}"]
        with plugged(running.monitor, file, serial):
            done = subprocess.run(running.way.command(order), stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise HostFailed(f"the host could not copy {name}")
    kept.touch()


def guest_image(tree: Path) -> Path:
    """The directory of the guest image of a tree, built by the tree's own builder if need be. Raises HostFailed."""
    python = tree / ".venv" / "bin" / "python"
    if not python.exists():
        raise HostFailed(f"{tree} has no .venv: run make there first")
    done = subprocess.run([str(python), "-m", "sandpool_image"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise HostFailed(f"the guest image of {tree} could not be built")
    return Path(done.stdout.strip())
