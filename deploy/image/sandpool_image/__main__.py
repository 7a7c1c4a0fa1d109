"""Entry point: `python -m sandpool_image` builds the guest image into ~/.cache/sandpool and says where it is."""

import sys
from pathlib import Path

from sandpool_image.build import BuildFailed, build


def main() -> int:
    """Build, with progress on stderr; prints the image's directory."""
    try:
        image = build(
            Path.home() / ".cache" / "sandpool",
            lambda message, fraction: print(f"{fraction:4.0%} {message}", file=sys.stderr),
        )
    except BuildFailed as error:
        print(f"sandpool-image: {error}", file=sys.stderr)
        return 1
    print(image.root.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
