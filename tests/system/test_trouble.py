"""What goes wrong in real sessions on real VMs, through the whole path: each ends as promised, nothing else does."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import grpc
import pytest

from sandpool import AsyncClient, AsyncSession, SessionEnded, SessionLost
from sandpool.errors import InvalidArgument, NotFound, ResourceExhausted
from sandpool.events import Ended, Gap, Started, Stdout
from sandpool.v1 import file_pb2, file_pb2_grpc, pool_pb2

from .conftest import Installation, until_warm

pytestmark = [pytest.mark.vm]
MIB = 1 << 20


async def alive(session: AsyncSession) -> None:
    """The session goes on."""
    result = await session.run("6 * 7")
    assert result.value == "42"


async def test_an_unknown_pool_is_named(client: AsyncClient) -> None:
    with pytest.raises(NotFound) as caught:
        await client.session("nowhere").run("1")
    assert (caught.value.reason, caught.value.field) == ("POOL_NOT_FOUND", "session.pool")


@pytest.mark.parametrize("identifier", ["a" * 129, "a b", "ä", "a\nb"])
async def test_an_illegal_identifier_names_its_field(client: AsyncClient, identifier: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.session("python", identifier).run("1")
    assert caught.value.field == "session.identifier"


async def test_code_may_be_empty_and_not_10_mb(session: AsyncSession) -> None:
    assert (await session.run("")).ok
    with pytest.raises(InvalidArgument) as caught:
        await session.run("#" * (10 * MIB))
    assert caught.value.field.startswith("code")
    await alive(session)


async def test_output_is_bytes_whatever_they_are(session: AsyncSession) -> None:
    raw = b"\xff\xfe\0\x80" * 1000
    source = f"import os\nos.write(1, {raw!r})"
    got = b"".join([event.data async for event in session.stream(source) if isinstance(event, Stdout)])
    assert got == raw


async def test_a_timeout_ends_a_loop_and_keeps_the_state(session: AsyncSession) -> None:
    await session.run("kept = 7")
    result = await session.run("while True: pass", timeout=1.0)
    assert (result.ended.killed, result.ended.state_lost) == ("TIMEOUT", False)
    assert (await session.run("kept")).value == "7"


async def test_a_command_that_ignores_sigterm_is_killed_with_its_group(session: AsyncSession) -> None:
    result = await session.exec("trap '' TERM; sleep 1000 & while :; do sleep 1; done", timeout=1.0)
    assert result.ended.killed == "TIMEOUT"
    left = await session.exec("ps ax -o args | grep -c '[s]leep 1000'")
    assert left.stdout == "0\n"


@pytest.mark.parametrize(
    ("source", "exit_code", "by_signal"),
    [("import os; os._exit(5)", 5, None), ("import ctypes; ctypes.string_at(0)", None, signal.SIGSEGV)],
)
async def test_a_dead_worker_is_an_event_and_is_replaced(
    session: AsyncSession, source: str, exit_code: int | None, by_signal: int | None
) -> None:
    result = await session.run(source)
    assert (result.ended.exit_code, result.ended.signal, result.ended.state_lost) == (exit_code, by_signal, True)
    await alive(session)


async def test_exit_is_the_code_of_the_cell(session: AsyncSession) -> None:
    result = await session.run("exit(3)")
    assert (result.ended.exit_code, result.error) == (3, None)
    await alive(session)


async def test_a_memory_hog_is_killed_and_the_agent_stays(session: AsyncSession) -> None:
    result = await session.run("hog = []\nwhile True: hog.append(bytearray(10_000_000))")
    assert (result.ended.killed, result.ended.state_lost) == ("MEMORY", True)
    result = await session.exec("tail /dev/zero")
    assert result.ended.killed == "MEMORY"
    await alive(session)


async def test_a_fork_bomb_ends_with_its_command(session: AsyncSession) -> None:
    result = await session.exec("bomb() { bomb | bomb & }; bomb; sleep 30", timeout=5.0, output_limit_bytes=MIB)
    assert result.ended.killed == "TIMEOUT" or result.ended.exit_code is not None
    await alive(session)
    assert int((await session.exec("ps ax | wc -l")).stdout) < 100


async def test_a_fork_bomb_ends_with_its_cell(session: AsyncSession) -> None:
    source = "import os\nwhile True:\n  try: os.fork()\n  except BaseException: pass"
    result = await session.run(source, timeout=2.0)
    assert result.ended.state_lost and result.ended.killed in ("TIMEOUT", "MEMORY")
    await alive(session)
    assert int((await session.exec("ls -d /proc/[0-9]* | wc -l")).stdout) < 100


async def test_who_kills_everything_ends_no_session(session: AsyncSession) -> None:
    await session.exec("kill -9 -1; kill -9 1; kill -9 $PPID")
    told = await session.run("1")
    assert told.ended.state_lost and told.ended.signal == signal.SIGKILL
    await alive(session)


async def test_nothing_of_the_agents_can_be_opened(session: AsyncSession) -> None:
    result = await session.exec(
        "for path in /dev/vport* /dev/vd? /dev/pmem? /dev/mem /run/sandpool/gate /proc/1/environ /proc/$PPID/mem; do "
        "(exec 3<$path) 2>/dev/null && echo read $path; (exec 3>>$path) 2>/dev/null && echo write $path; done; "
        "mkdir /run/mine /dev/mine /etc/mine /opt/sandpool/mine 2>/dev/null || echo none"
    )
    assert result.stdout == "none\n"


# A daemon, and it is a sleep before this ends: Popen returns when the new program has begun.
LEAVES_A_SLEEP = (
    """python3 -c "import subprocess as s; n = s.DEVNULL; """
    """s.Popen(['sleep', '1000'], stdin=n, stdout=n, stderr=n, start_new_session=True)\""""
)


async def test_what_a_command_leaves_is_killed_and_what_a_cell_leaves_stays_until_it_is_killed(
    session: AsyncSession,
) -> None:
    assert (await session.exec(f"{LEAVES_A_SLEEP}; exit 3")).ended.exit_code == 3
    count = "cat /proc/[0-9]*/comm 2>/dev/null | grep -c sleep"
    assert (await session.exec(count)).stdout == "0\n"
    await session.run(f"import subprocess; subprocess.run({LEAVES_A_SLEEP!r}, shell=True, check=True); kept = 1")
    assert (await session.exec(count)).stdout == "1\n"
    result = await session.run("while True: pass", timeout=1.0)
    assert (result.ended.killed, result.ended.state_lost) == ("TIMEOUT", False)
    assert ((await session.exec(count)).stdout, (await session.run("kept")).value) == ("0\n", "1")


# All that the disk has, in a few large pieces.
FILL = """
import os
size = 1 << 40
with open("full", "wb") as file:
    while size:
        try: os.posix_fallocate(file.fileno(), file.tell(), size); file.seek(size, 1)
        except OSError: size //= 2
"""


async def test_a_full_disk_ends_nothing_and_deleting_frees_it(session: AsyncSession) -> None:
    await session.run(FILL)
    assert "No space left" in (await session.exec("echo 1 > more")).stderr
    for data in (b"x", bytes(3 * MIB)):
        with pytest.raises(ResourceExhausted) as caught:
            await session.files.write("d/new", data)
        assert caught.value.reason == "DISK_FULL"
    assert (await session.run("import os; os._exit(3)")).ended.state_lost
    await alive(session)  # a fresh worker starts without any room
    await session.files.remove("full")
    await session.files.write("d/new", bytes(3 * MIB))
    assert [file.path async for file in session.files.list(recursive=True)] == ["d", "d/new", "more"]


async def test_full_memory_file_systems_cost_executions_at_most(session: AsyncSession) -> None:
    await session.exec("head -c 1G /dev/zero > /dev/shm/full")
    await session.run("1")  # it may be the one that there is no memory for
    await session.exec("rm -f /dev/shm/full")
    await session.run("1")
    await alive(session)


async def test_a_hundred_clients_of_one_session_share_one_vm(installation: Installation) -> None:
    identifier = "hundred"
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(installation.address)) for _ in range(100)]
        sessions = [client.session("python", identifier, pin=False) for client in clients]
        bindings = await asyncio.gather(*(session.ensure() for session in sessions))
        await asyncio.gather(*(session.files.mkdir(f"{number}") for number, session in enumerate(sessions)))
        assert len({(binding.vm_id, binding.epoch) for binding in bindings}) == 1
        assert [binding.created for binding in bindings].count(True) == 1
        assert len([file async for file in sessions[0].files.list()]) == 100
        await sessions[0].stop()


@pytest.mark.parametrize("path", ["../etc/passwd", "/etc/passwd", "link/passwd", "a\0b", "x/" * 2500])
async def test_paths_do_not_leave_the_data(session: AsyncSession, path: str) -> None:
    await session.exec("ln -sfn /etc link")
    with pytest.raises(InvalidArgument) as caught:
        await session.files.read(path)
    assert caught.value.field == "path"
    with pytest.raises(InvalidArgument):
        await session.files.write(path, b"x")


async def test_an_interrupted_upload_leaves_nothing(client: AsyncClient, session: AsyncSession) -> None:
    await session.ensure()
    stub = file_pb2_grpc.FileServiceStub(client.channel)
    arrived = asyncio.Event()

    async def half() -> object:
        yield file_pb2.WriteFileRequest(header=file_pb2.WriteFileHeader(session=session.ref(), path="half"))
        yield file_pb2.WriteFileRequest(data=b"x" * 100_000)
        arrived.set()
        await asyncio.Event().wait()

    call = stub.Write(half())
    await arrived.wait()
    call.cancel()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await call
    assert [file.path async for file in session.files.list(recursive=True)] == []
    with pytest.raises(NotFound):
        await session.files.stat("half")


async def test_a_reader_that_left_finds_everything_again(session: AsyncSession) -> None:
    source = "import time\nfor n in range(300): print(n, flush=True); time.sleep(0.005)"
    execution_id, seen = "", b""
    async for event in session.stream(source):
        if isinstance(event, Started):
            execution_id = event.execution_id
        elif isinstance(event, Stdout):
            seen += event.data
            if len(seen) > 200:
                break
    again = [event async for event in session.attach(execution_id)]
    everything = b"".join(event.data for event in again if isinstance(event, Stdout))
    assert everything == b"".join(b"%d\n" % n for n in range(300))
    assert isinstance(again[-1], Ended) and not any(isinstance(event, Gap) for event in again)


async def test_output_beyond_the_limit_is_one_gap(session: AsyncSession) -> None:
    result = await session.exec("head -c 3000000 /dev/zero | tr '\\0' x", output_limit_bytes=MIB)
    assert (len(result.stdout), result.ok, [gap.reason for gap in result.gaps]) == (MIB, True, ["OUTPUT_LIMIT"])


async def test_a_vm_that_dies_in_mid_execution_is_session_lost(installation: Installation, client: AsyncClient) -> None:
    session = client.session("python")
    killed = False  # the line may come in two pieces
    with pytest.raises(SessionLost) as caught:
        async for event in session.stream("print('on', flush=True)\nwhile True: pass"):
            if isinstance(event, Started):
                vmm = installation.vmm_pid(event.vm_id)
            elif isinstance(event, Stdout) and not killed:
                os.kill(vmm, signal.SIGKILL)
                killed = True
    assert caught.value.end_reason == "VM_LOST"
    with pytest.raises(SessionEnded):  # the object stands for the session that is lost
        await session.run("1")
    fresh = client.session("python", session.identifier)
    result = await fresh.run("1")
    assert (result.started.created, result.started.previous_end_reason) == (True, "VM_LOST")
    await fresh.stop()
    await until_warm(client, 2)


async def test_sessions_share_nothing(client: AsyncClient) -> None:
    one, other = client.session("python"), client.session("python")
    probe = (
        "import uuid, random, numpy, os\nopen('mine', 'w').write('x')\n"
        "print(uuid.uuid4(), random.random(), numpy.random.rand(), os.urandom(8).hex(), "
        "open('/proc/sys/kernel/random/boot_id').read().strip(), open('/etc/machine-id').read().strip(), "
        "os.uname().nodename)"
    )
    first, second = await one.run(probe), await other.run(probe)
    assert first.ok and second.ok
    assert not set(first.stdout.split()) & set(second.stdout.split())
    assert [file.path async for file in other.files.list()] == ["mine"]
    await one.stop()
    await other.stop()


async def test_what_comes_with_the_template_is_not_counted_and_what_a_session_makes_goes(session: AsyncSession) -> None:
    source = (
        "import gc, sys, weakref, pandas\nclass New: pass\nnew = New(); new.itself = new; gone = weakref.ref(new)\n"
        "before = gone() is None; del new; gc.collect()\n"
        "print(sys.getrefcount(pandas) > 1 << 30, before, gone() is None)"
    )
    assert (await session.run(source)).stdout == "True False True\n"


async def test_there_is_no_network_and_that_is_said_at_once(session: AsyncSession) -> None:
    result = await session.run("import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=60)")
    assert result.error is not None and "unreachable" in result.error.value
    result = await session.exec("pip install requests-that-is-not-there", timeout=100.0)
    assert result.ended.exit_code not in (0, None)


async def test_user_code_has_no_privileges(session: AsyncSession) -> None:
    result = await session.exec(
        "id -u; grep -E 'NoNewPrivs|CapEff|CapBnd' /proc/self/status; cat /proc/self/oom_score_adj"
    )
    uid, *status, score = result.stdout.split("\n")[:-1]
    assert uid == "1000"
    assert dict(line.split(":\t") for line in status)["CapEff"] == "0" * 16
    assert dict(line.split(":\t") for line in status)["NoNewPrivs"] == "1"
    assert int(score) >= 0


async def test_an_idle_session_ends_with_its_reason(client: AsyncClient) -> None:
    spec = pool_pb2.PoolSpec(ready_target=0)
    spec.cooldown.FromSeconds(2)
    await client.pools.create("brief", spec)
    session = client.session("brief")
    await session.run("import time; time.sleep(4)")  # busy is not idle
    await alive(session)
    while [one.identifier async for one in client.sessions("brief")]:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    with pytest.raises(SessionEnded) as caught:
        await session.run("1")
    assert caught.value.end_reason == "IDLE"
    await client.pools.delete("brief", force=True)
