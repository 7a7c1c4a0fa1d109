"""Entry point: `python -m sandpool_kvmhost` runs commands of a tree on a host with KVM, emulated.

up                    boot it, or find it running
run -- COMMAND ...    send the tree, run the command in it, end with its exit code
test [ARGUMENT ...]   the tests that need Cloud Hypervisor, with further arguments of pytest
shell                 a shell in the tree
down                  end it; nothing is kept
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sandpool_image.steps import BuildFailed
from sandpool_kvmhost.command import HostSpec
from sandpool_kvmhost.fill import INSIDE, guest_image, has_binary, send_binary, send_image, send_tree
from sandpool_kvmhost.host import HostFailed, Place, Running, free_port
from sandpool_kvmhost.image import build, remove_others, wanted
from sandpool_kvmhost.inputs import BadProject, project
from sandpool_kvmhost.join import Joining
from sandpool_kvmhost.qmp import QmpFailed
from sandpool_kvmhost.tree import BadTree

CACHE = Path.home() / ".cache" / "sandpool"
BINARY = CACHE / "bin" / "cloud-hypervisor"
# Of `sandpool up`.
DATA = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
POOL_MANAGER = DATA / "sandpool" / "run" / "pool-manager.sock"
# A template takes two minutes there, and more on a busy machine.
TIMEOUT = "--timeout=1800"
TESTS = ("python", "-m", "pytest", "-m", "cloud_hypervisor", TIMEOUT, "tests/contract", "tests/system")
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
    parser.add_argument("order", choices=("up", "run", "test", "join", "shell", "down"))
    parser.add_argument("--tree", type=Path, default=Path.cwd(), help="the checkout  [default: here]")
    parser.add_argument(
        "--cloud-hypervisor", type=Path, metavar="PATH", help="the binary  [default: that of PATH, or of the cache]"
    )
    parser.add_argument(
        "--pool-manager", type=Path, default=POOL_MANAGER, help=f"its socket, for join  [default: {POOL_MANAGER}]"
    )
    parser.add_argument("--driver", default="auto", help="of the node agent that joins  [default: auto]")
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
    if arguments.order == "join":
        return _join(running, tree, arguments.pool_manager.resolve(), arguments.driver)
    if arguments.order == "test":
        words = [*TESTS, *words]
    if not words:
        raise ValueError("run needs a command: run -- COMMAND ...")
    return _run(running, tree, words)


def _up(place: Place, tree: Path, spec: HostSpec) -> Running:
    """The caller holds the lock."""
    requirements = project((tree / "pyproject.toml").read_text()).requirements
    running = place.find()
    if running is None:
        image = build(CACHE, requirements, lambda message, fraction: _say(f"{int(fraction * 100)}% {message}"))
        remove_others(CACHE, image)
        _say("booting (about 20 seconds)")
        return place.boot(spec, image, _say)
    if not running.way.open():
        raise HostFailed(f"the host does not answer (logs in {running.directory}); `down` ends it")
    if running.image != wanted(CACHE, requirements):
        _say("a new host would be made of something else than the one that runs: `down` ends that one")
    return running


def _fill(running: Running, tree: Path, binary: Path | None) -> None:
    found = binary or shutil.which("cloud-hypervisor") or (BINARY if BINARY.exists() else None)
    if found is not None:
        send_binary(running, Path(found), _say)
    elif not has_binary(running):
        _say("the host has no Cloud Hypervisor: --cloud-hypervisor PATH, or make cloud-hypervisor")
    send_tree(running, tree, _say)
    send_image(running, guest_image(tree), _say)


def _join(running: Running, tree: Path, pool_manager: Path, driver: str) -> int:
    if not pool_manager.is_socket():
        raise HostFailed(f"no pool-manager listens at {pool_manager}: start `sandpool up`, or say --pool-manager")
    joining = Joining(pool_manager, free_port(), free_port(), secrets.token_hex(4))
    _say("the node agent joins; `sandpool nodes` shows it, Ctrl-C ends it and its VMs")
    return _run(running, tree, joining.command(driver), joining.forwards())


def _run(running: Running, tree: Path, words: Sequence[str], options: Sequence[str] = ()) -> int:
    """Ctrl-C ends the command inside first, and shows how it ends; another one does not wait for that."""
    command = running.way.command([INSIDE, "run", str(tree), *words], options)
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.stdin.close()  # which is what the other side waits for
            process.wait()
            raise
        finally:
            process.kill()


def _say(message: str) -> None:
    print(f"kvmhost: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
