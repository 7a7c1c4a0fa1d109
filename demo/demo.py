"""What sandpool does, shown on real VMs: `make demo`. Ends with 1 if anything was not as it should be."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from sandpool import AsyncClient, AsyncSession, SessionEnded
from sandpool.errors import NotFound
from sandpool.events import Ended, Stdout
from sandpool.v1 import pool_pb2

HERE = Path(__file__).parent
OUT = HERE.parent / "build" / "demo"
console = Console(highlight=False)
PLOT = """import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(9, 3))
ax.plot(table.YEAR, table.SUNACTIVITY, linewidth=0.8)
ax.set_title("Sunspots, 1700 to 2008")
fig.savefig("/mnt/data/sunspots.png", dpi=120)
print("drawn")
"""


def check(condition: bool, what: str) -> None:
    """The demo does not claim what did not happen."""
    if not condition:
        raise SystemExit(f"demo: this was not as it should be: {what}")


def title(text: str) -> None:
    """Of a step."""
    console.print(f"\n[bold cyan]{text}[/]")


def show_code(source: str, language: str = "python") -> None:
    """What runs."""
    console.print(Panel(Syntax(source.strip(), language, background_color="default"), border_style="dim"))


async def pandas_on_a_csv(client: AsyncClient, alice: AsyncSession) -> Ended:
    """A file goes up, pandas is there already."""
    title("1  A CSV goes up, pandas reads it")
    await alice.files.upload(HERE / "sunspots.csv", "sunspots.csv")
    source = 'import pandas as pd\ntable = pd.read_csv("sunspots.csv")\ntable.SUNACTIVITY.describe().round(1)'
    show_code(source)
    begun = time.perf_counter()
    result = await alice.run(source)
    check(result.ok and result.value is not None and "309.0" in result.value, f"pandas: {result}")
    console.print(result.value)
    console.print(
        f"[dim]first execution of this session, import of pandas included: "
        f"{(time.perf_counter() - begun) * 1000:.0f} ms[/]"
    )
    return result.ended


async def output_as_it_is_produced(client: AsyncClient, alice: AsyncSession) -> Ended:
    """Nothing is held back."""
    title("2  Output arrives while the program runs")
    source = 'import time\nfor n in range(5):\n    print("line", n)\n    time.sleep(0.4)'
    show_code(source)
    begun, arrivals, line, ended = time.perf_counter(), [], b"", None
    async for event in alice.stream(source):
        if isinstance(event, Stdout):
            *lines, line = (line + event.data).split(b"\n")
            for complete in lines:
                arrivals.append(time.perf_counter() - begun)
                console.print(f"[green]{arrivals[-1]:6.2f} s[/]  {complete.decode()}")
        elif isinstance(event, Ended):
            ended = event
    check(len(arrivals) == 5 and arrivals[-1] - arrivals[0] > 1.0, f"streaming: {arrivals}")
    assert ended is not None
    return ended


async def state_is_kept(client: AsyncClient, alice: AsyncSession) -> Ended:
    """Between calls."""
    title("3  Variables are kept between calls")
    source = "table.loc[table.SUNACTIVITY.idxmax()].to_dict()"
    show_code(source)
    result = await alice.run(source)
    check(result.value == "{'YEAR': 1957.0, 'SUNACTIVITY': 190.2}", f"state: {result}")
    console.print(result.value)
    return result.ended


async def a_plot_comes_back(client: AsyncClient, alice: AsyncSession) -> Ended:
    """As a file."""
    title("4  A plot is drawn there and downloaded")
    show_code(PLOT)
    result = await alice.run(PLOT)
    check(result.stdout == "drawn\n", f"plot: {result}")
    OUT.mkdir(parents=True, exist_ok=True)
    target = OUT / "sunspots.png"
    await alice.files.download("sunspots.png", target)
    check(target.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", "the picture")
    console.print(f"{target.relative_to(HERE.parent)}: {target.stat().st_size} bytes of PNG")
    return result.ended


async def commands(client: AsyncClient, alice: AsyncSession) -> Ended:
    """Any program, in parallel with the language."""
    title("5  Commands")
    ended = None
    for command in (["uname", "-a"], ["ls", "-l", "/mnt/data"]):
        result = await alice.exec(command)
        check(result.ok, f"{command}: {result}")
        console.print(f"[bold]$ {' '.join(command)}[/]\n{result.stdout.rstrip()}", markup=True)
        ended = result.ended
    assert ended is not None
    return ended


async def sessions_are_apart(client: AsyncClient, alice: AsyncSession) -> Ended:
    """Another identifier is another VM."""
    title("6  Two sessions, two VMs: neither sees the other's files")
    bob = client.session("python", "bob")
    identity = "cat /proc/sys/kernel/random/boot_id; ls /mnt/data"
    table = Table("session", "VM", "boot id", "files in /mnt/data", header_style="dim")
    seen = {}
    for name, session in (("alice", alice), ("bob", bob)):
        result = await session.exec(identity)
        check(result.ok, f"{name}: {result}")
        boot_id, *files = result.stdout.split()
        seen[name] = (boot_id, files)
        table.add_row(name, result.started.vm_id, boot_id[:8], "\n".join(files) or "-")
    console.print(table)
    check(seen["alice"][0] != seen["bob"][0] and not seen["bob"][1], f"isolation: {seen}")
    try:
        await bob.files.read("sunspots.csv")
        check(False, "bob read alice's file")
    except NotFound as error:
        console.print(f"bob reads sunspots.csv: [red]{error}[/]")
    await bob.stop()
    return result.ended


async def idle_sessions_end(client: AsyncClient, alice: AsyncSession) -> Ended:
    """With their VM."""
    title("7  An idle session ends by itself")
    spec = pool_pb2.PoolSpec(ready_target=0)
    spec.cooldown.FromSeconds(3)
    await client.pools.create("brief", spec)
    carol = client.session("brief", "carol")
    result = await carol.run("secret = 1")
    check(result.ok, f"carol: {result}")
    begun = time.perf_counter()
    while [session.identifier async for session in client.sessions("brief")]:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    console.print(
        f"carol's session of the pool 'brief' (cooldown 3 s) was gone after {time.perf_counter() - begun:.1f} s"
    )
    try:
        await carol.run("secret")
        check(False, "carol's session went on")
    except SessionEnded as error:
        check(error.end_reason == "IDLE", f"reason: {error.metadata}")
        console.print(f"the old session object: [red]{error}[/], because it was {error.end_reason}")
    fresh = await client.session("brief", "carol").run("'secret' in globals()")
    check(fresh.value == "False" and fresh.started.created, f"fresh: {fresh}")
    console.print(f"a new one: fresh VM, told that the one before ended {fresh.started.previous_end_reason}")
    await client.pools.delete("brief", force=True)
    return fresh.ended


STEPS: tuple[Callable[[AsyncClient, AsyncSession], Awaitable[Ended]], ...] = (
    pandas_on_a_csv,
    output_as_it_is_produced,
    state_is_kept,
    a_plot_comes_back,
    commands,
    sessions_are_apart,
    idle_sessions_end,
)


def timings(steps: dict[str, Ended]) -> None:
    """Where the time went."""
    title("Where the time went (ms)")
    table = Table("step", *("claim", "tunnel", "guest queue", "guest run", "total"), header_style="dim")
    for name, ended in steps.items():
        fields = ("acquire_us", "connect_us", "guest_queue_us", "guest_run_us", "total_us")
        table.add_row(name.replace("_", " "), *(f"{ended.timings[field] / 1000:.1f}" for field in fields))
    console.print(table)


def processes_of(state: Path) -> list[str]:
    """Command lines that name the state directory, or run in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(state) in line or (process / "cwd").readlink().is_relative_to(state):
                found.append(line)
    return found


def end_in_order() -> None:
    """SIGTERM and SIGHUP cancel this task, once, as Ctrl-C does: what it has started is ended then."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())


@asynccontextmanager
async def installation(*options: str) -> AsyncIterator[str]:
    """`sandpool up` on a state directory of its own; yields its address; nothing is left afterwards."""
    end_in_order()
    state = Path(tempfile.mkdtemp(prefix="sandpool-demo-", dir="/tmp"))
    arguments = ["up", "--state-dir", str(state), "--listen", "127.0.0.1:0", "--ready-target", "2", *options]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sandpool.cli", *arguments), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        words = (await process.stdout.readline()).decode().split()
        check(words[:2] == ["ready", "sandpool"], "sandpool did not start")
        yield words[2]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        status = await process.wait()
        left = processes_of(state)
        shutil.rmtree(state, ignore_errors=True)
        check(status == 0 and not left, f"sandpool ended with {status} and left {left}")


async def main() -> None:
    """All steps."""
    begun = time.perf_counter()
    console.print(Panel("[bold]sandpool[/]: every session in its own microVM, ready before it is asked for"))
    async with installation() as address, AsyncClient(address) as client:
        async for node in client.nodes():
            console.print(f"{node.driver}, {node.acceleration}: [dim]{node.acceleration_detail}[/]")
        alice = client.session("python", "alice")
        timings({step.__name__: await step(client, alice) for step in STEPS})
    console.print(f"\n[bold green]done[/] in {time.perf_counter() - begun:.0f} s; every VM and process is gone")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        sys.exit("demo: ended by a signal")
