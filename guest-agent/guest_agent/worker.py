"""The Python worker: an IPython InteractiveShell in a process of its own, spoken to over two pipes (worker_pipe.py).

Started by the guest agent as `python -u -m guest_agent.worker REQUESTS REPLIES` (descriptor numbers). Output is not
framed: descriptors 1 and 2 are pipes that the agent reads, so that children and C code stream too.
"""

import base64
import contextlib
import gc
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from guest_agent.immortal import immortalize
from guest_agent.prefault import map_files
from guest_agent.worker_pipe import SEED_SIGNAL, WorkerPipe

# Imported before the template is frozen, so that they cost a session nothing. What is not installed is passed over.
POPULAR = (
    "numpy", "pandas", "scipy", "scipy.stats", "sklearn", "sklearn.linear_model", "matplotlib", "matplotlib.pyplot",
    "PIL.Image", "openpyxl", "requests", "sympy", "bs4", "lxml.etree",
)  # fmt: skip


PLAIN_TYPES = {bool, int, float, complex, str, bytes}
# IPython's own display objects say these in base64, as a notebook wants them: here results are bytes.
BASE64 = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")


MT19937_WORDS = 624
# What many a session begins with. The interpreter adapts its code to what it is used for, in the first few runs: that
# is written once in the template, and not in the memory of every clone.
FIGURE = "import matplotlib.pyplot as plt; plt.plot([1, 2])"
TABLE = "import pandas as pd\npd.DataFrame({'a': [1.0], 'b': ['x']}).describe()"
REHEARSALS = (FIGURE, *(TABLE, "print(1)", "1") * 4)


class Worker:
    """The shell and what it is doing."""

    def __init__(self, pipe: WorkerPipe) -> None:
        self.pipe = pipe
        self.running = self.rehearsing = False
        self.results = 0
        self.failure: tuple[str, str, str] | None = None
        self.pid = os.getpid()
        self.home = os.getcwd()  # noqa: PTH109
        self.spare = {number: (os.dup(number), os.fstat(number)) for number in (0, 1, 2)}
        self.interrupt = self._interrupt  # one and the same object, to compare with
        self.shell = self._make_shell()

    def _make_shell(self) -> Any:
        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.colors = "nocolor"
        config.InteractiveShell.xmode = "Context"
        shell: Any = InteractiveShell.instance(config=config)
        shell.displayhook = Display(self, shell)
        shell.display_trap.hook = shell.displayhook
        shell.display_pub.publish = self.publish
        shell._showtraceback = self.show_traceback
        shell.user_ns["exit"] = shell.user_ns["quit"] = sys.exit
        warnings.filterwarnings("ignore", message="To exit: use")
        warnings.filterwarnings("ignore", message=".*FigureCanvasAgg is non-interactive.*")
        return shell

    def publish(self, data: dict[str, Any], *_: Any, is_value: bool = False, **__: Any) -> None:
        """Send one displayed value: each of its representations is a result of its own MIME type."""
        self.results += 1
        for mime_type, value in data.items():
            if isinstance(value, bytes):
                raw = value
            elif isinstance(value, str) and mime_type in BASE64:
                raw = _from_base64(value)
            elif isinstance(value, str):
                raw = value.encode("utf-8", "replace")
            else:
                raw = json.dumps(value, default=str).encode()
            header = {"id": self.results, "mime": str(mime_type)[:256], "value": is_value, "size": len(raw)}
            # A thread that outlives its cell has nobody to show anything to.
            self.pipe.send("R", json.dumps(header).encode(), raw, only_if=lambda: self.running and not self.rehearsing)

    def show_traceback(self, kind: type[BaseException], value: BaseException, lines: list[str]) -> None:
        """Keep the exception for the end frame instead of printing it."""
        self.failure = (_name(kind), _say(value), "\n".join(lines))

    def rehearse(self, source: str) -> None:
        """Run a cell that nobody sees and that leaves nothing: libraries import more when they are used."""
        known = dict(self.shell.user_ns)
        self.rehearsing = True
        self.run(source, {}, None, b"")
        self.rehearsing = False
        self.shell.user_ns.clear()
        self.shell.user_ns.update(known)

    def run(self, source: str, env: dict[str, str], cwd: str | None, stdin: bytes) -> dict[str, Any]:
        """Run one cell. Returns the end frame's content."""
        self.results, self.failure = 0, None
        before = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        self._restore_streams()
        self._heed_interrupts()
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))  # input() raises EOFError at its end
        error: BaseException | None
        try:
            with self._directory(cwd), _environment(env):
                self.running = True
                outcome = self.shell.run_cell(source, store_history=not self.rehearsing)
                self._show_figures()
                self.running = False
            error = outcome.error_before_exec or outcome.error_in_exec
        except BaseException as caught:  # an interrupt outside of the cell's frames, a directory that is not there
            error = caught
        self.running = False
        if os.getpid() != self.pid:  # the cell has forked, and this is the copy: one is enough to go on
            os._exit(0)
        return self._end(before, error)

    def _restore_streams(self) -> None:
        """A cell may have closed what the next one prints to, or put something else there."""
        for number, (spare, status) in self.spare.items():
            if not _is_same(number, status):
                os.dup2(spare, number)
        for number, name in ((1, "stdout"), (2, "stderr")):
            if not _is_open(getattr(sys, name, None)):
                setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))

    def _heed_interrupts(self) -> None:
        """Whatever a cell has made of SIGINT: the next one is interrupted, not killed, when its time is up."""
        if signal.getsignal(signal.SIGINT) is not self.interrupt:
            signal.signal(signal.SIGINT, self.interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _interrupt(self, _number: int, _frame: Any) -> None:
        if self.running and not self.pipe.defer_interrupt():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _directory(self, cwd: str | None) -> Iterator[None]:
        """For this cell only. Without one it stays where it is, unless that is gone."""
        if cwd is None:
            try:
                os.getcwd()  # noqa: PTH109
            except FileNotFoundError:
                os.chdir(self.home)
            yield
            return
        back = os.open(".", os.O_PATH)
        try:
            os.chdir(os.path.join(self.home, cwd))  # noqa: PTH118
            yield
        finally:
            os.fchdir(back)
            os.close(back)

    def _end(self, before: Any, error: BaseException | None) -> dict[str, Any]:
        end: dict[str, Any] = {"exit": 0, "cpu": 0.0}
        for then, who in zip(before, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN), strict=True):
            now = resource.getrusage(who)
            end["cpu"] += now.ru_utime + now.ru_stime - then.ru_utime - then.ru_stime
            end["memory"] = max(end.get("memory", 0), now.ru_maxrss * 1024)
        if isinstance(error, SystemExit):
            end["exit"] = error.code if isinstance(error.code, int) else int(error.code is not None)
            if end["exit"] and not isinstance(error.code, int):
                os.write(2, f"{_say(error)}\n".encode("utf-8", "replace"))
        elif error is not None:
            name, value, trace = self.failure or (_name(type(error)), _say(error), "")
            end.update(exit=1, error={"name": name[:256], "value": value[:16384], "traceback": trace[-65536:]})
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):  # whatever the cell has put there
                getattr(sys, name).flush()
        return end

    def _show_figures(self) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        numbers = pyplot.get_fignums()
        try:
            for number in numbers:
                picture = io.BytesIO()
                pyplot.figure(number).savefig(picture, format="png", bbox_inches="tight")
                self.publish({"image/png": picture.getvalue()})
        finally:
            if numbers:
                pyplot.close("all")

    def seed(self, seed: bytes) -> bytes:
        """Make every generator of this process its own. Returns a sample.

        Those that user code has made for itself are its variables, and stay as they are.
        """
        random.seed(seed)
        for reseed in (_seed_numpy, _seed_sympy):
            # A cell is importing it just now, or has put a generator there that is a variable of its own. Whatever else
            # goes wrong is told: who cannot be reseeded must not become a clone.
            with contextlib.suppress(AttributeError, ValueError):
                reseed(seed)
        if "uuid" in sys.modules:
            sys.modules["uuid"].__dict__["_last_timestamp"] = None
        return random.randbytes(32)

    def seed_in_cell(self) -> None:
        """The handler of SEED_SIGNAL: the cell goes on with generators of its own. Between cells nothing."""
        if not self.running or os.getpid() != self.pid or self.pipe.defer(self.seed_in_cell):
            return
        if self.pipe.has_request():
            _, seed = self.pipe.receive()
            sample = b""
            try:
                sample = self.seed(seed)
            finally:  # the agent waits for it
                self.pipe.send("S", sample)


class Display:
    """sys.displayhook: the value of a cell's last expression."""

    is_active = False  # IPython asks, to colour outputs that it prints itself

    def __init__(self, worker: Worker, shell: Any) -> None:
        self._worker = worker
        self._shell = shell
        self.exec_result: Any = None

    def __call__(self, value: Any = None) -> None:
        """Send it and keep it as `_`."""
        if value is None:
            return
        self._shell.user_ns["_"] = value
        if self.exec_result is not None:
            self.exec_result.result = value
        self._worker.publish(self._format(value), is_value=True)

    def _format(self, value: Any) -> dict[str, Any]:
        """By MIME type. A plain value has no other representation than its text, unless user code has made one."""
        formatter = self._shell.display_formatter
        text = formatter.formatters["text/plain"]
        if type(value) in PLAIN_TYPES:
            all_of_them = (*formatter.formatters.values(), formatter.ipython_display_formatter)
            others = [one for one in (*all_of_them, formatter.mimebundle_formatter) if one is not text]
            if not any(type(value) in one.type_printers for one in others):
                return {"text/plain": text(value)}
        data: dict[str, Any] = formatter.format(value)[0]
        return data

    def quiet(self) -> bool:
        """IPython asks; a trailing semicolon is not special here."""
        return False


@contextlib.contextmanager
def _environment(env: dict[str, str]) -> Iterator[None]:
    """For this cell only."""
    saved = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _seed_numpy(_seed: bytes) -> None:
    """A state and no seed: numpy makes an array of a seed, and a fresh clone would translate a lot of code for that."""
    if "numpy.random" in sys.modules:
        key = struct.unpack(f"{MT19937_WORDS}I", os.urandom(4 * MT19937_WORDS))
        state = {"bit_generator": "MT19937", "state": {"key": key, "pos": MT19937_WORDS}}
        sys.modules["numpy.random"].set_state(state)


def _seed_sympy(seed: bytes) -> None:
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].seed(seed)


def _is_same(descriptor: int, status: os.stat_result) -> bool:
    """Whether it is that open pipe or device."""
    try:
        return os.path.samestat(os.fstat(descriptor), status)
    except OSError:
        return False


def _is_open(stream: Any) -> bool:
    """Whether it is worth a try. What has no such attribute may be a stream of the user's own."""
    try:
        return stream is not None and not getattr(stream, "closed", False)
    except ValueError:  # detached
        return False


def _from_base64(text: str) -> bytes:
    """User code may have put anything there: what is no base64 stays as it is."""
    try:
        return base64.b64decode(text, validate=False) if text.isascii() else text.encode()
    except ValueError:
        return text.encode()


def _name(kind: type[BaseException]) -> str:
    """As people know it: Python 3.13 calls some syntax errors by a name of its own."""
    own = kind.__module__ == "builtins" and kind.__name__.startswith("_")
    return (kind.__bases__[0] if own else kind).__name__


def _say(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as worse:  # the exception is the cell's, and so is its __str__
        return f"<no text: {type(worse).__name__}>"


def preimport(worker: Worker) -> None:
    """Import the popular libraries and run once through what a first cell would run, and a first interrupt."""
    for name in POPULAR:
        try:
            __import__(name)
        except ImportError:
            continue
    for source in REHEARSALS:
        worker.rehearse(source)
    # The first traceback takes a while, emulated as long as an interrupted cell is given.
    worker.rehearse("raise KeyboardInterrupt")
    gc.collect()
    immortalize()
    map_files()


def main() -> None:
    """Entry point."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.pop("PYTHONPATH", None)  # was for this process alone
    pipe = WorkerPipe(int(sys.argv[1]), int(sys.argv[2]))
    worker = Worker(pipe)

    signal.signal(signal.SIGINT, worker.interrupt)
    signal.signal(SEED_SIGNAL, lambda *_: worker.seed_in_cell())
    if "--preimport" in sys.argv:
        preimport(worker)
    sys.path.insert(0, worker.home)  # for the session's own modules, now that the worker has found its own

    gc.collect()
    gc.freeze()
    pipe.send("S", b"ready")
    while True:
        try:
            kind, payload = pipe.receive()
        except EOFError:
            os._exit(0)
        except BaseException:  # noqa: S112 - of a signal's handler that a cell has left behind: nobody's any more
            continue
        if kind == "S":
            pipe.send("S", worker.seed(payload))
        else:
            request = json.loads(payload)
            end = worker.run(request["source"], request["env"], request["cwd"], base64.b64decode(request["stdin"]))
            pipe.send("E", json.dumps(end).encode())


if __name__ == "__main__":
    main()
