"""Entry point: `python -m sandpool_image` builds the guest image into the cache and prints its directory."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from sandpool_image.build import BuildFailed, build


def main() -> int:
    """Build, with progress on stderr (`NN% message`)."""
    parser = argparse.ArgumentParser(prog="sandpool-image", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "sandpool")
    parser.add_argument("--lifeline", action="store_true", help="end, with every child, at the end of standard input")
    arguments = parser.parse_args()
    if arguments.lifeline:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        image = build(
            arguments.cache,
            lambda message, fraction: print(f"{int(fraction * 100)}% {message}", file=sys.stderr, flush=True),
        )
    except BuildFailed as error:
        print(f"sandpool-image: {error}", file=sys.stderr)
        return 1
    print(image.root.parent)
    return 0


def _end_with_stdin() -> None:
    """Whoever started us has made us the leader of a process group."""
    while os.read(0, 1):
        continue
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
