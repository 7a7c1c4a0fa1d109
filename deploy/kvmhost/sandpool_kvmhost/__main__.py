"""Entry point: `python -m sandpool_kvmhost` runs commands of a tree on a host with KVM, emulated.

up                    boot it, or find it running
run -- COMMAND ...    send the tree, run the command in it, end with its exit code
test [ARGUMENT ...]   the tests that need Cloud Hypervisor, with further arguments of pytest
shell                 a shell in the tree
down                  end it; nothing is kept
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from sandpool_image.steps import BuildFailed
from sandpool_kvmhost.command import HostSpec
from sandpool_kvmhost.fill import INSIDE, guest_image, send_binary, send_image, send_tree
from sandpool_kvmhost.host import HostFailed, Place, Running
from sandpool_kvmhost.image import build
from sandpool_kvmhost.inputs import BadProject, project
from sandpool_kvmhost.qmp import QmpFailed
from sandpool_kvmhost.tree import BadTree

CACHE = Path.home() / ".cache" / "sandpool"
BINARY = CACHE / "bin" / "cloud-hypervisor"
TESTS = ("python", "-m", "pytest", "-m", "cloud_hypervisor", "tests/contract", "tests/system")
FAILURES = (BuildFailed, HostFailed, BadTree, BadProject, QmpFailed, OSError, ValueError)


def main() -> int:
    """Progress on stderr; what the command inside writes is passed on as it comes."""
    ours, words = _split(sys.argv[1:])
    arguments = _parser().parse_args(ours)
    try:
        return _act(arguments, words)
    except FAILURES as error:
        print(f"kvmhost: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sandpool-kvmhost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("order", choices=("up", "run", "test", "shell", "down"))
    parser.add_argument("--tree", type=Path, default=Path.cwd(), help="the checkout  [default: here]")
    parser.add_argument(
        "--cloud-hypervisor", type=Path, metavar="PATH", help="the binary  [default: one of the cache, or of PATH]"
    )
    parser.add_argument("--cpus", type=int, default=HostSpec.cpus)
    parser.add_argument("--memory-mb", type=int, default=HostSpec.memory_mb)
    parser.add_argument("--idle-minutes", type=int, default=HostSpec.idle_minutes, help="after which it ends")
    return parser


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What is for us, and what is for inside."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _act(arguments: argparse.Namespace, words: list[str]) -> int:
    place = Place(CACHE)
    if arguments.order == "down":
        with place.locked():
            _say("ended" if place.end() else "there was none")
        return 0
    tree = arguments.tree.resolve()
    with place.locked():
        running = _up(place, tree, HostSpec(arguments.cpus, arguments.memory_mb, arguments.idle_minutes))
        if arguments.order == "up":
            _say(f"is up; logs in {running.directory}")
            return 0
        _fill(running, tree, arguments.cloud_hypervisor)
    if arguments.order == "shell":
        return subprocess.call(running.way.command(["sh", "-c", 'cd "$0" && exec bash -l', str(tree)], ["-tt"]))
    if arguments.order == "test":
        words = [*TESTS, *words]
    if not words:
        raise ValueError("run needs a command: run -- COMMAND ...")
    return _run(running, tree, words)


def _up(place: Place, tree: Path, spec: HostSpec) -> Running:
    """The caller holds the lock."""
    requirements = project((tree / "pyproject.toml").read_text()).requirements
    image = build(CACHE, requirements, lambda message, fraction: _say(f"{int(fraction * 100)}% {message}"))
    running = place.find()
    if running is not None and running.way.open():
        if running.image != image:
            _say("the running host was made of other packages than this tree asks for; `down` ends it")
        return running
    place.end()
    _say("booting (about 20 seconds)")
    return place.boot(spec, image, _say)


def _fill(running: Running, tree: Path, binary: Path | None) -> None:
    found = binary or (BINARY if BINARY.exists() else None) or shutil.which("cloud-hypervisor")
    if found is None:
        _say("no Cloud Hypervisor is sent: --cloud-hypervisor PATH, or make cloud-hypervisor")
    else:
        send_binary(running, Path(found), _say)
    send_tree(running, tree, _say)
    send_image(running, guest_image(tree), _say)


def _run(running: Running, tree: Path, words: list[str]) -> int:
    """Ctrl-C ends the command inside first, and shows how it ends."""
    command = running.way.command([INSIDE, "run", str(tree), *words])
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.stdin.close()
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _say(message: str) -> None:
    print(f"kvmhost: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    sys.exit(main())
