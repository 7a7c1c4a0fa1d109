"""Builds the guest image into a cache, by content address; what is there already is not built again."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sandpool_image.assemble import assemble
from sandpool_image.inputs import KEYRING, BaseInputs, base_id, image_id
from sandpool_image.steps import BuildFailed, Progress, run

__all__ = ["BuildFailed", "ImagePaths", "build", "debian_layer", "locked", "make_scratch"]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class ImagePaths:
    """A complete image."""

    kernel: Path
    initramfs: Path
    root: Path
    image_id: str


def build(cache: Path, progress: Progress) -> ImagePaths:
    """The image of this source tree, from the cache or built now (about three minutes; seconds after a change of ours).

    progress gets a message and a fraction. Needs no root. Raises BuildFailed.
    """
    inputs = BaseInputs()
    base, files = base_id(inputs), _our_files()
    name = image_id(base, files)
    target = cache / "images" / name
    paths = ImagePaths(target / "vmlinux", target / "initramfs", target / "root.erofs", name)
    with locked(cache / "images.lock"):
        if not target.exists():
            archive = debian_layer(cache, inputs, progress)
            assemble(archive, files, target, progress)
    return paths


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time."""
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


def debian_layer(cache: Path, inputs: BaseInputs, progress: Progress) -> Path:
    """The slow layer as an archive, from the cache or made now. The caller holds a lock. Raises BuildFailed."""
    archive = cache / "debian" / f"{base_id(inputs)}.tar"
    if archive.exists():
        return archive
    progress(f"installing Debian {inputs.suite} (about 3 minutes, once)", 0.0)
    archive.parent.mkdir(parents=True, exist_ok=True)
    for stale in archive.parent.glob("*.part.tar"):  # of a build that was killed: we hold the lock
        stale.unlink()
    part = archive.with_suffix(".part.tar")
    mode = "root" if os.geteuid() == 0 else "unshare"
    command = ["mmdebstrap", "--quiet", f"--mode={mode}", "--variant=minbase", f"--keyring={KEYRING}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in inputs.excluded]
    run([*command, f"--include={','.join(inputs.packages)}", inputs.suite, str(part)], "mmdebstrap")
    part.rename(archive)
    return archive


def make_scratch(path: Path, size_bytes: int) -> None:
    """An empty ext4 disk, sparse. Raises BuildFailed."""
    path.touch()
    os.truncate(path, size_bytes)
    options = ["-q", "-F", "-L", "scratch", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1"]
    run(["mkfs.ext4", *options, str(path)], "mkfs.ext4")
