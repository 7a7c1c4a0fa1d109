"""The recipe of the guest image: the guest agent and its requirements on Debian's layer."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from sandpool_image.initramfs import build_initramfs
from sandpool_image.inputs import AGENT_REQUIREMENTS, GUEST_PYTHON, MODULES
from sandpool_image.recipe import Bench, follow, install_wheels, main, pack, take_kernel
from sandpool_image.steps import Progress, run

# virtio-pmem wants whole huge pages.
PMEM_ALIGNMENT = 2 << 20


def assemble(archive: Path, files: Mapping[str, bytes], target: Path, progress: Progress) -> None:
    """Make the directory target. Raises BuildFailed."""
    follow("sandpool_image.assemble", archive, files, target, progress)


def _recipe(bench: Bench, progress: Progress) -> None:
    progress("adding the guest agent", 0.7)
    _add_agent(bench)
    take_kernel(bench)
    (bench.out / "initramfs").write_bytes(build_initramfs(bench.root, bench.files["init"], bench.work, MODULES))
    progress("packing the root", 0.8)
    packed = pack(bench)
    os.truncate(packed, -(-packed.stat().st_size // PMEM_ALIGNMENT) * PMEM_ALIGNMENT)
    (bench.out / "image.json").write_text(json.dumps({"image_id": bench.name}))


def _add_agent(bench: Bench) -> None:
    """Our files, their requirements as wheels for the guest's Python, and the user of user code."""
    root = bench.root
    for name, data in bench.files.items():
        if name.startswith("opt/"):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (root / "opt/sandpool/start").chmod(0o755)
    install_wheels(AGENT_REQUIREMENTS, root / "opt/sandpool", GUEST_PYTHON)
    with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
        passwd.write("sandbox:x:1000:1000:sandbox:/mnt/data:/bin/bash\n")
        group.write("sandbox:x:1000:\n")
    run(["chroot", str(root), "python3", "-m", "compileall", "-q", "/opt/sandpool"], "compileall")


if __name__ == "__main__":
    sys.exit(main(_recipe))
