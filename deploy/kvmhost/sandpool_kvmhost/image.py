"""Builds the emulated host's image into a cache, by content address; what is there already is not built again."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandpool_image.build import debian_layer, locked
from sandpool_image.recipe import follow
from sandpool_image.steps import Progress
from sandpool_kvmhost.inputs import BASE, host_id

HERE = Path(__file__).parent
REQUIREMENTS = "requirements"


@dataclass(frozen=True)
class HostImage:
    """A complete image; its directory is for its owner alone, as the keys to the host are in there."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initramfs"

    @property
    def root(self) -> Path:
        return self.directory / "root.erofs"

    @property
    def key(self) -> Path:
        """Lets in."""
        return self.directory / "key"

    @property
    def known_hosts(self) -> Path:
        """How the host is recognised."""
        return self.directory / "known_hosts"


def wanted(cache: Path, requirements: Sequence[str]) -> HostImage:
    """The host with these packages, whether it is built or not."""
    return HostImage(_hosts(cache) / host_id(requirements, _files(requirements)))


def build(cache: Path, requirements: Sequence[str], progress: Progress) -> HostImage:
    """That image, from the cache or built now (about two minutes). Raises BuildFailed."""
    image = wanted(cache, requirements)
    with locked(cache / "images.lock"):  # that of the guest's image: both make the slow layer
        if not image.directory.exists():
            _hosts(cache).mkdir(parents=True, exist_ok=True)
            _hosts(cache).chmod(0o700)
            archive = debian_layer(cache, BASE, progress)
            follow("sandpool_kvmhost.recipe", archive, _files(requirements), image.directory, progress)
    return image


def remove_others(cache: Path, image: HostImage) -> None:
    """A gigabyte each. Of all hosts, only one of this image may run."""
    for other in _hosts(cache).iterdir():
        if other != image.directory:
            shutil.rmtree(other, ignore_errors=True)


def _hosts(cache: Path) -> Path:
    return cache / "kvmhost" / "images"


def _files(requirements: Sequence[str]) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in (HERE / "init.sh", HERE / "start.sh", HERE / "inside.py")}
    files["recipe"] = (HERE / "recipe.py").read_bytes()  # how it is made counts too
    return {**files, REQUIREMENTS: "\n".join(requirements).encode()}
