"""The releases of Cloud Hypervisor that `sandpool doctor --fix` downloads: static, by architecture and content."""

from dataclasses import dataclass

VERSION = "53.0"
SOURCE = f"https://github.com/cloud-hypervisor/cloud-hypervisor/releases/download/v{VERSION}"
# Before it: a virtio-block bug that a guest could use, and memory files that are copied where they should be mapped.
OLDEST = (51, 2)
# Holds the memory of every clone twice.
REFUSED_MAJOR = 52


@dataclass(frozen=True)
class Release:
    """One file of SOURCE."""

    name: str
    sha256: str
    size_bytes: int


# By what platform.machine() says.
RELEASES = {
    "x86_64": Release(
        "cloud-hypervisor-static", "448af3d4e59b22c2987f7df94c213ad40fb53a10d437e42b5ee6c4fce7c29ecc", 7_062_256
    ),
    "aarch64": Release(
        "cloud-hypervisor-static-aarch64", "f192b510eea1c710cbc439d716bb0573c223fc463dbe3e6523788a2b7ef62850", 5_468_264
    ),
}
