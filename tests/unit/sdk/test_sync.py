"""The synchronous client, against real services."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandpool import Client, SessionEnded, sync
from sandpool.errors import NotFound, PoolChanged, PoolInUse, Unavailable
from sandpool.events import Ended, Stdout
from sandpool.v1 import pool_pb2


def test_a_session_from_its_beginning_to_its_end(address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        session = client.session("python", "sync")
        assert session.run("x = 6 * 7").ok and session.run("x").value == "42"
        assert session.exec(["echo", "hello"]).stdout == "hello\n" and session.epoch
        session.write("d/a.txt", b"hello")
        assert session.read("d/a.txt") == b"hello" and session.files.stat("d/a.txt").size_bytes == 5
        session.download("d/a.txt", tmp_path / "a.txt")
        session.upload(tmp_path / "a.txt", "b.txt")
        session.files.move("b.txt", "c.txt")
        session.files.mkdir("e")
        session.files.remove("e")
        assert [file.path for file in session.files.list(recursive=True)] == ["c.txt", "d", "d/a.txt"]
        assert "sync" in [one.identifier for one in client.sessions("python")]
        assert session.info().epoch == session.epoch
        assert session.stop() and not session.stop()
        with pytest.raises(SessionEnded) as caught:
            session.run("x")
        assert caught.value.end_reason == "STOPPED"


def test_pools_and_nodes(address: str) -> None:
    with Client(address) as client:
        made = client.pools.create("brief", pool_pb2.PoolSpec(ready_target=0))
        assert client.pools.update("brief", pool_pb2.PoolSpec(max_sessions=3), "max_sessions").spec.max_sessions == 3
        assert made.name in [pool.name for pool in client.pools.list()]
        assert client.pools.get("brief").spec.max_sessions == 3
        client.pools.delete("brief")
        with pytest.raises(NotFound):
            client.pools.update("nowhere", pool_pb2.PoolSpec(max_sessions=3), "max_sessions")
        assert [node.driver for node in client.nodes()] == ["fake"]


def test_settings_by_keyword_and_waits(address: str) -> None:
    with Client(address) as client:
        client.pools.create("kept", ready_target=1, cooldown=60)
        assert client.pools.until_ready("kept", timeout=60).counts.warm == 1
        updated = client.pools.update("kept", vcpus=2, expected_generation=1)
        assert (updated.generation, updated.spec.cooldown.seconds) == (2, 60)
        with pytest.raises(PoolChanged):
            client.pools.update("kept", vcpus=3, expected_generation=1)
        assert not client.pools.until_ready("kept", timeout=60).counts.outdated
        with client.session("kept", "inside") as session:
            assert session.ensure(timeout=30).created
            with pytest.raises(PoolInUse):
                client.pools.delete("kept")
        assert [one.identifier for one in client.sessions("kept")] == []
        client.pools.delete("kept")
        client.pools.until_gone("kept", timeout=60)
        with pytest.raises(TimeoutError):
            client.pools.until_gone("python", timeout=0.01)


def test_what_happened_is_told(address: str) -> None:
    with Client(address) as client:
        with client.session("python", "history") as session:
            session.ensure()
        told = list(client.history.list(session="history", oldest_first=True))
        assert [event.reason for event in told] == ["ASSIGNED", "STOPPED"]
        newest = next(client.history.list(session="history"))
        assert newest == told[-1]
        watch = client.history.watch(after=told[0].sequence - 1, session="history")
        assert [next(watch), next(watch)] == told
        watch.close()


def test_events_come_one_at_a_time_and_may_be_left(address: str) -> None:
    with Client(address) as client:
        session = client.session()
        stream = session.stream("import time\nwhile True: print('x', flush=True); time.sleep(0.01)")
        assert any(isinstance(event, Stdout) for event in stream)
        stream.close()
        command = session.stream_command("sleep 1000", execution_id="sleep")
        next(command)
        assert session.cancel("sleep")
        assert [event.killed for event in command if isinstance(event, Ended)] == ["CANCELLED"]
        session.stop()
        left = session.files.list()
    with pytest.raises(RuntimeError, match="closed"):
        next(left)


def test_an_iterator_may_outlive_its_client(address: str) -> None:
    client = Client(address)
    session = client.session()
    stream = session.stream_command("sleep 1000")
    next(stream)
    client.close()
    client.close()
    del stream
    with Client(address) as again:
        assert again.session(session.pool, session.identifier).stop()


def test_threads_share_a_client(address: str) -> None:
    with Client(address) as client:
        session, results = client.session(), []
        threads = [
            threading.Thread(target=lambda n=n: results.append(session.exec(f"echo {n}").stdout)) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [f"{n}\n" for n in range(8)]
        session.stop()


def test_a_sink_that_uses_its_own_client_is_told(address: str) -> None:
    source = (
        "import sys, sandpool\n"
        "with sandpool.Client(sys.argv[1]) as client, client.session() as session:\n"
        "    answer = lambda data: session.input('e', b'y')\n"
        "    session.exec('echo sure?; read answer', keep_stdin_open=True, execution_id='e', on_stdout=answer)\n"
    )
    done = subprocess.run([sys.executable, "-c", source, address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "RuntimeError: a sink or progress callback cannot use" in done.stderr, done.stderr


def test_an_iterator_may_be_dropped_on_the_thread_of_its_client() -> None:
    ended = threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.set()

    async def drop() -> None:
        stream.close()

    bridge = sync._Bridge()
    stream = bridge.iterate(numbers())
    assert next(stream) == 1
    # A thread of its own: it would hang, and we would with it.
    dropping = threading.Thread(target=bridge.run, args=[drop()], daemon=True)
    dropping.start()
    dropping.join(30)
    assert not dropping.is_alive() and ended.wait(30)
    bridge.close()


def test_a_client_that_closes_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closing, go = threading.Event(), threading.Event()

    async def cancel_others() -> None:
        closing.set()
        await asyncio.to_thread(go.wait)

    monkeypatch.setattr(sync, "_cancel_others", cancel_others)
    bridge = sync._Bridge()
    closer = threading.Thread(target=bridge.close)
    closer.start()
    assert closing.wait(30)
    try:
        with pytest.raises(RuntimeError, match="closed"):
            bridge.run(asyncio.sleep(0))
    finally:
        go.set()
        closer.join()


def test_nobody_there() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable):
        client.pools.get("python")


def test_importing_the_package_is_cheap() -> None:
    source = "import sys, sandpool; assert 'grpc' not in sys.modules; sandpool.Client; assert 'grpc' in sys.modules"
    subprocess.run([sys.executable, "-c", source], check=True)
    with pytest.raises(AttributeError):
        __import__("sandpool").nothing  # noqa: B018
