"""The initramfs: busybox, an init script, and the few kernel modules that reaching the root takes."""

import lzma
import subprocess
from collections.abc import Sequence
from pathlib import Path


def build_initramfs(root: Path, init: bytes, work: Path, modules: Sequence[str]) -> bytes:
    """A newc archive made of an unpacked Debian root. work is an empty directory."""
    (work / "bin").mkdir()
    (work / "modules").mkdir()
    (work / "bin" / "busybox").write_bytes((root / "usr/bin/busybox").read_bytes())
    (work / "init").write_bytes(init)
    for program in (work / "bin" / "busybox", work / "init"):
        program.chmod(0o755)
    order = [_copy_module(path, work / "modules") for path in _with_dependencies(root, modules)]
    (work / "modules" / "order").write_text("".join(f"{name}\n" for name in order))
    names = "".join(f"{path.relative_to(work)}\n" for path in sorted(work.rglob("*")))
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "--reproducible"]
    return subprocess.run(command, cwd=work, input=names.encode(), capture_output=True, check=True).stdout


def _with_dependencies(root: Path, modules: Sequence[str]) -> list[Path]:
    """Files of modules and of what they need, in an order that loads. Those built into the kernel are left out."""
    base = next((root / "usr/lib/modules").iterdir())
    needs = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).name.removesuffix(".ko.xz").replace("-", "_"): path for path in needs}
    order: list[str] = []
    for module in modules:
        path = by_name.get(module.replace("-", "_"), "")
        # modules.dep lists what must be there first last.
        for each in (*reversed(needs.get(path, [])), path):
            if each and each not in order:
                order.append(each)
    return [base / path for path in order]


def _copy_module(path: Path, target: Path) -> str:
    """Decompress one module: busybox loads no compressed ones."""
    name = path.name.removesuffix(".xz")
    (target / name).write_bytes(lzma.decompress(path.read_bytes()))
    return name
