"""What the guest image is made of. Pure: the content address is a hash over all of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

# Independent of the host's: a suite whose kernel is 6.12 or newer.
SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
GUEST_PYTHON = "3.13"

PACKAGES = (
    "linux-image-cloud-amd64", "busybox-static", "ca-certificates", "curl", "git", "iproute2", "nodejs", "procps",
    "python3", "python3-bs4", "python3-ipython", "python3-lxml", "python3-matplotlib", "python3-numpy",
    "python3-openpyxl", "python3-pandas", "python3-pil", "python3-pip", "python3-requests", "python3-scipy",
    "python3-sklearn", "python3-sympy",
)  # fmt: skip

# Left out of every package: nobody reads them in a sandbox.
EXCLUDED_PATHS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

# Debian's protobuf is older than our generated code.
AGENT_REQUIREMENTS = ("protobuf>=7.35,<8", "grpclib>=0.4.8")

# In the order in which they are loaded; those that are built in are passed over.
MODULES = (
    "libnvdimm", "nd_btt", "nd_virtio", "virtio_pmem", "nd_pmem", "virtio_blk", "erofs", "overlay", "vsock",
    "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", "rng-core", "virtio-rng",
    "pvpanic-pci",
)  # fmt: skip


@dataclass(frozen=True)
class BaseInputs:
    """The slow layer: Debian's packages."""

    suite: str = SUITE
    packages: tuple[str, ...] = PACKAGES
    excluded: tuple[str, ...] = EXCLUDED_PATHS


def base_id(inputs: BaseInputs) -> str:
    """Content address of the slow layer."""
    return hashlib.sha256(json.dumps(asdict(inputs), sort_keys=True).encode()).hexdigest()[:32]


def image_id(base: str, files: Mapping[str, bytes]) -> str:
    """Content address of the whole image: the slow layer and every file of ours by its path."""
    digest = hashlib.sha256(json.dumps([base, AGENT_REQUIREMENTS, MODULES, GUEST_PYTHON]).encode())
    for path, data in sorted(files.items()):
        digest.update(json.dumps([path, hashlib.sha256(data).hexdigest()]).encode())
    return digest.hexdigest()[:32]
