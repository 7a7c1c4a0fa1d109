"""Generate the committed Python code from protos/ into sdk/python (proto path = Python package path).

With --check nothing is written: exits 1 and names the files that differ from what protos/ says.
"""

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "sdk" / "python"


def generate(out: Path) -> None:
    """Run protoc with the Python, gRPC and stub generators. Raises SystemExit if protoc fails."""
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    include = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'protos'}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}"]
    arguments += [f"--mypy_out={out}", f"--mypy_grpc_out={out}", *map(str, protos)]
    if protoc.main(arguments):
        raise SystemExit("protoc failed")
    for proto in protos:
        package = out / proto.relative_to(ROOT / "protos").parent
        while package != out / "sandpool":
            (package / "__init__.py").touch()
            package = package.parent


def main() -> int:
    """Entry point."""
    if "--check" not in sys.argv:
        generate(OUT)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        fresh = {path.relative_to(temporary): path.read_bytes() for path in Path(temporary).rglob("*.py*")}
    stale = [
        str(name) for name, data in fresh.items() if not (OUT / name).exists() or (OUT / name).read_bytes() != data
    ]
    if stale:
        print("generated code differs from protos/ (run `make proto`):", *stale, sep="\n  ")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
