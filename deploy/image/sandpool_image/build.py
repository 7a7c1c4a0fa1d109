"""Builds the guest image into a cache, by content address; what is there already is not built again."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sandpool_image.initramfs import build_initramfs
from sandpool_image.inputs import AGENT_REQUIREMENTS, GUEST_PYTHON, KEYRING, BaseInputs, base_id, image_id
from sandpool_image.kernel import extract_vmlinux

Progress = Callable[[str, float], None]
HERE = Path(__file__).parent
# virtio-pmem wants whole huge pages.
PMEM_ALIGNMENT = 2 << 20


class BuildFailed(RuntimeError):
    """A step failed; the message is for humans."""


@dataclass(frozen=True)
class ImagePaths:
    """A complete image."""

    kernel: Path
    initramfs: Path
    root: Path
    image_id: str


def build(cache: Path, progress: Progress) -> ImagePaths:
    """The image of this source tree, from the cache or built now (about three minutes; seconds after a change of ours).

    progress gets a message and a fraction. Needs root for now: files in the image belong to several users.
    """
    inputs = BaseInputs()
    base, files = base_id(inputs), _our_files()
    name = image_id(base, files)
    target = cache / "images" / name
    paths = ImagePaths(target / "vmlinux", target / "initramfs", target / "root.erofs", name)
    with _lock(cache / "images.lock"):
        if not target.exists():
            if os.geteuid() != 0:
                raise BuildFailed("the guest image must be built as root")
            archive = _debian(cache, base, inputs, progress)
            _assemble(archive, files, target, progress)
    return paths


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _our_files() -> dict[str, bytes]:
    """Everything that goes into the image besides packages, by its path there."""
    files = {"init": (HERE / "init.sh").read_bytes(), "opt/sandpool/start": (HERE / "start.sh").read_bytes()}
    files["build"] = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))  # how it is made counts too
    files["opt/sandpool/sandpool/__init__.py"] = b""
    for package in ("guest_agent", "sandpool.v1", "sandpool.guest.v1"):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise BuildFailed(f"the Python package {package} is not installed")
        directory = Path(spec.origin).parent
        for path in directory.glob("*.py"):
            files[f"opt/sandpool/{package.replace('.', '/')}/{path.name}"] = path.read_bytes()
    files["opt/sandpool/sandpool/guest/__init__.py"] = b""
    return files


def _run(arguments: list[str], what: str) -> None:
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildFailed(f"{what}: {done.stderr[-2000:]}")


def _debian(cache: Path, base: str, inputs: BaseInputs, progress: Progress) -> Path:
    """The slow layer as an archive."""
    archive = cache / "debian" / f"{base}.tar"
    if archive.exists():
        return archive
    progress(f"installing Debian {inputs.suite} for the guest (about 3 minutes, once)", 0.0)
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part.tar")
    excludes = [f"--dpkgopt=path-exclude={path}" for path in inputs.excluded]
    packages = f"--include={','.join(inputs.packages)}"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--keyring={KEYRING}", *excludes, packages]
    _run([*command, inputs.suite, str(part)], "mmdebstrap")
    part.rename(archive)
    return archive


def _assemble(archive: Path, files: dict[str, bytes], target: Path, progress: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as temporary:
        work, out = Path(temporary), Path(temporary) / "out"
        root = work / "root"
        for directory in (root, out, work / "initramfs"):
            directory.mkdir()
        progress("unpacking", 0.6)
        _run(["tar", "-xf", str(archive), "-C", str(root), "--numeric-owner"], "tar")
        progress("adding the guest agent", 0.7)
        _add_agent(root, files)
        (out / "vmlinux").write_bytes(extract_vmlinux(next((root / "boot").glob("vmlinuz-*")).read_bytes()))
        (out / "initramfs").write_bytes(build_initramfs(root, files["init"], work / "initramfs"))
        progress("packing the root", 0.8)
        for unwanted in ("boot", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / unwanted, ignore_errors=True)
        _run(["mkfs.erofs", "-x-1", "-Enoinline_data", str(out / "root.erofs"), str(root)], "mkfs.erofs")
        size = (out / "root.erofs").stat().st_size
        os.truncate(out / "root.erofs", -(-size // PMEM_ALIGNMENT) * PMEM_ALIGNMENT)
        (out / "image.json").write_text(json.dumps({"image_id": target.name}))
        out.rename(target)
    progress("image ready", 1.0)


def _add_agent(root: Path, files: dict[str, bytes]) -> None:
    """Our files, their requirements as wheels for the guest's Python, and the user of user code."""
    for name, data in files.items():
        if name.startswith("opt/"):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (root / "opt/sandpool/start").chmod(0o755)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as wheels:
        _run([*pip, "wheel", "--no-deps", "-w", wheels, "grpclib>=0.4.8"], "pip wheel")
        for_guest = [f"--python-version={GUEST_PYTHON}", "--platform=manylinux2014_x86_64", "--only-binary=:all:"]
        target = ["--target", str(root / "opt/sandpool"), "--find-links", wheels]
        _run([*pip, "install", "--no-compile", *for_guest, *target, *AGENT_REQUIREMENTS], "pip install")
    with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
        passwd.write("sandbox:x:1000:1000:sandbox:/mnt/data:/bin/bash\n")
        group.write("sandbox:x:1000:\n")
    _run(["chroot", str(root), "python3", "-m", "compileall", "-q", "/opt/sandpool"], "compileall")


def make_scratch(path: Path, size_bytes: int) -> None:
    """An empty ext4 disk, sparse. Raises BuildFailed."""
    path.touch()
    os.truncate(path, size_bytes)
    options = ["-q", "-F", "-L", "scratch", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1"]
    _run(["mkfs.ext4", *options, str(path)], "mkfs.ext4")
