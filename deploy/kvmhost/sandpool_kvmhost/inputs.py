"""What the emulated host is made of, and what it needs of a tree. Pure: all of it is in the content address."""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandpool_image.inputs import GUEST_PYTHON, BaseInputs, base_id

# The guest's suite: that kernel's kvm_amd is proven under emulation.
PYTHON = GUEST_PYTHON
PACKAGES = (
    "linux-image-cloud-amd64", "busybox-static", "ca-certificates", "e2fsprogs", "erofs-utils", "iproute2", "kmod",
    "openssh-server", "procps", "python3", "qemu-system-x86", "strace",
)  # fmt: skip
BASE = BaseInputs(packages=PACKAGES)
# What the initramfs loads; the rest is loaded from the root.
MODULES = ("virtio_blk", "erofs", "overlay")
# For writing the project, not for running it.
LEFT_OUT = ("buf-bin", "grpcio-tools", "mypy", "mypy-protobuf", "ruff", "types-grpcio", "types-protobuf")


class BadProject(ValueError):
    """A tree's pyproject.toml lacks something."""


@dataclass(frozen=True)
class Project:
    """Of a tree: paths are the directories of its packages, relative to it."""

    name: str
    version: str
    paths: tuple[str, ...]
    requirements: tuple[str, ...]


def project(pyproject: str) -> Project:
    """Out of a pyproject.toml. Raises BadProject."""
    try:
        data = tomllib.loads(pyproject)
        about = data["project"]
        wanted = [*about["dependencies"], *about["optional-dependencies"]["dev"]]
        paths = data["tool"]["hatch"]["build"]["dev-mode-dirs"]
        kept = [each for each in wanted if _name(each) not in LEFT_OUT]
        return Project(about["name"], about["version"], tuple(paths), tuple(sorted(kept)))
    except (tomllib.TOMLDecodeError, LookupError, TypeError) as error:
        raise BadProject(f"pyproject.toml: {error!r}") from error


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def host_id(requirements: Sequence[str], files: Mapping[str, bytes]) -> str:
    """Content address of the host's image: the slow layer, the registry's packages and every file of ours."""
    digest = hashlib.sha256(json.dumps([base_id(BASE), MODULES, PYTHON, list(requirements)]).encode())
    for path, data in sorted(files.items()):
        digest.update(json.dumps([path, hashlib.sha256(data).hexdigest()]).encode())
    return digest.hexdigest()[:32]
