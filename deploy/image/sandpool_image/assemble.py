"""Makes an image of Debian's layer and our files. A process of its own: files in an image belong to several users.

As root it is an ordinary process. Else it runs in a user namespace, where the user's range of ids stands for them.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sandpool_image.initramfs import build_initramfs
from sandpool_image.inputs import AGENT_REQUIREMENTS, GUEST_PYTHON
from sandpool_image.kernel import NoKernel, extract_vmlinux
from sandpool_image.steps import BuildFailed, Progress, environment, run

NAMESPACE = ("unshare", "--user", "--map-root-user", "--map-auto")
WORK_PREFIX = ".build-"
# virtio-pmem wants whole huge pages.
PMEM_ALIGNMENT = 2 << 20


def assemble(archive: Path, files: Mapping[str, bytes], target: Path, progress: Progress) -> None:
    """Make the directory target. Raises BuildFailed."""
    prefix = () if os.geteuid() == 0 else NAMESPACE
    if prefix:
        run([*prefix, "true"], "an ordinary user needs user namespaces, the package uidmap and a line in /etc/subuid")
    command = [*prefix, sys.executable, "-m", "sandpool_image.assemble", str(archive), str(target)]
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


def _assemble(archive: Path, files: Mapping[str, bytes], target: Path, progress: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{WORK_PREFIX}*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=WORK_PREFIX) as temporary:
        work, out = Path(temporary), Path(temporary) / "out"
        root = work / "root"
        for directory in (root, out, work / "initramfs"):
            directory.mkdir()
        progress("unpacking", 0.6)
        # Only root may make devices, and the guest's kernel brings its own.
        run(["tar", "-xf", str(archive), "-C", str(root), "--numeric-owner", "--exclude=./dev/*"], "tar")
        progress("adding the guest agent", 0.7)
        _add_agent(root, files)
        (out / "vmlinux").write_bytes(extract_vmlinux(next((root / "boot").glob("vmlinuz-*")).read_bytes()))
        (out / "initramfs").write_bytes(build_initramfs(root, files["init"], work / "initramfs"))
        progress("packing the root", 0.8)
        for unwanted in ("boot", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / unwanted, ignore_errors=True)
        run(["mkfs.erofs", "-x-1", "-Enoinline_data", str(out / "root.erofs"), str(root)], "mkfs.erofs")
        size = (out / "root.erofs").stat().st_size
        os.truncate(out / "root.erofs", -(-size // PMEM_ALIGNMENT) * PMEM_ALIGNMENT)
        (out / "image.json").write_text(json.dumps({"image_id": target.name}))
        out.rename(target)
    progress("image ready", 1.0)


def _add_agent(root: Path, files: Mapping[str, bytes]) -> None:
    """Our files, their requirements as wheels for the guest's Python, and the user of user code."""
    for name, data in files.items():
        if name.startswith("opt/"):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (root / "opt/sandpool/start").chmod(0o755)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as wheels:
        run([*pip, "wheel", "--no-deps", "-w", wheels, "grpclib>=0.4.8"], "pip wheel")
        for_guest = [f"--python-version={GUEST_PYTHON}", "--platform=manylinux2014_x86_64", "--only-binary=:all:"]
        target = ["--target", str(root / "opt/sandpool"), "--find-links", wheels]
        run([*pip, "install", "--no-compile", *for_guest, *target, *AGENT_REQUIREMENTS], "pip install")
    with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
        passwd.write("sandbox:x:1000:1000:sandbox:/mnt/data:/bin/bash\n")
        group.write("sandbox:x:1000:\n")
    run(["chroot", str(root), "python3", "-m", "compileall", "-q", "/opt/sandpool"], "compileall")


def main() -> int:
    """Archive and target by argument, files on standard input; progress on standard output."""
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through what cleans up
    archive, target = map(Path, sys.argv[1:])
    files = {name: base64.b64decode(data) for name, data in json.load(sys.stdin).items()}
    try:
        _assemble(archive, files, target, _say)
    except (BuildFailed, NoKernel, OSError, subprocess.CalledProcessError) as error:
        _say(str(error), None)
        return 1
    return 0


def _say(message: str, fraction: float | None) -> None:
    """No fraction: it has failed."""
    print(json.dumps([message, fraction]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
