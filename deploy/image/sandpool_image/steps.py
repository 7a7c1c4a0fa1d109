"""Running the tools of the build."""

import os
import subprocess
from collections.abc import Callable, Sequence

# A message and a fraction.
Progress = Callable[[str, float], None]
# An ordinary user's PATH on Debian lacks the last two, where mkfs.ext4 and chroot are.
_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


class BuildFailed(RuntimeError):
    """A step failed; the message is for humans."""


def environment() -> dict[str, str]:
    """Of every tool."""
    return {**os.environ, "PATH": _PATH, "PIP_ROOT_USER_ACTION": "ignore"}


def run(arguments: Sequence[str], what: str) -> None:
    """To the end. Raises BuildFailed."""
    try:
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment()
        )
    except FileNotFoundError as error:
        raise BuildFailed(f"{what}: {error.filename} is not installed") from error
    if done.returncode != 0:
        raise BuildFailed(f"{what}: {done.stderr[-2000:].strip()}")
