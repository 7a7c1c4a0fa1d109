"""The initramfs: busybox, an init script, and the few kernel modules that reaching the root takes."""

import lzma
import subprocess
from pathlib import Path

from sandpool_image.inputs import MODULES


def build_initramfs(root: Path, init: bytes, work: Path) -> bytes:
    """A newc archive made of an unpacked Debian root. work is an empty directory."""
    (work / "bin").mkdir()
    (work / "modules").mkdir()
    (work / "bin" / "busybox").write_bytes((root / "usr/bin/busybox").read_bytes())
    (work / "init").write_bytes(init)
    for program in (work / "bin" / "busybox", work / "init"):
        program.chmod(0o755)
    order = [name for module in MODULES if (name := _copy_module(root, module, work / "modules"))]
    (work / "modules" / "order").write_text("".join(f"{name}\n" for name in order))
    names = "".join(f"{path.relative_to(work)}\n" for path in sorted(work.rglob("*")))
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "--reproducible"]
    return subprocess.run(command, cwd=work, input=names.encode(), capture_output=True, check=True).stdout


def _copy_module(root: Path, module: str, target: Path) -> str | None:
    """Decompress one module. None if it is built into the kernel."""
    wanted = module.replace("-", "_")
    for path in (root / "usr/lib/modules").rglob("*.ko.xz"):
        if path.name.removesuffix(".ko.xz").replace("-", "_") == wanted:
            (target / f"{wanted}.ko").write_bytes(lzma.decompress(path.read_bytes()))
            return f"{wanted}.ko"
    return None
