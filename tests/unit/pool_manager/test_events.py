"""What happened and why is told from the store: whole, in order, bounded."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import grpc
import pytest

from pool_manager import event_table, sqlite_store
from pool_manager.clock import Clock
from pool_manager.event_service import EventService
from pool_manager.sqlite_store import SqliteStore
from pool_manager.store import Conflict, EventQuery, EventRow, NodeRow, SessionRow, VmRow
from sandpool.v1 import event_pb2 as pb
from sandpool.v1 import session_pb2
from service_kit.errors import Unavailable

from .conftest import Control, failure, kinds

ALL = EventQuery(limit=1000)


async def test_the_life_of_a_session_is_told_with_its_reasons(control: Control) -> None:
    await control.create(ready_target=1, max_sessions=1)
    made = (await control.ensure()).session
    await control.end()
    await control.until(lambda pool: pool.counts.warm == 1)
    told = await control.history(vm_id=made.vm_id)
    expected = [
        "VM_ADDED:REFILL",
        "VM_WARM:PROVEN",
        "SESSION_BEGAN:ASSIGNED",
        "SESSION_ENDED:STOPPED",
        "VM_ENDED:STOPPED",
    ]
    assert kinds(told) == expected
    assert {(event.pool, event.node_id) for event in told} == {("p", "node-1")}
    of_session = await control.history(pool="p", session="alice")
    assert [(event.epoch, event.vm_id) for event in of_session] == [(made.epoch, made.vm_id)] * 2
    assert kinds(await control.history(node_id="node-1"))[:2] == ["NODE_REGISTERED:REGISTERED", "NODE_READY:SNAPSHOT"]


async def test_a_pool_from_its_creation_to_its_end(control: Control) -> None:
    await control.create(ready_target=0)
    await control.update(max_sessions=5)
    await control.update(max_sessions=5)  # nothing changes
    await control.update("resources.vcpus", "max_sessions", resources={"vcpus": 2})
    await control.delete()
    await control.happened("POOL_REMOVED")
    told = await control.history(pool="p")
    assert kinds(told) == [
        "POOL_CREATED:REQUESTED",
        "POOL_UPDATED:SETTINGS",
        "POOL_UPDATED:GENERATION",
        "POOL_DELETING:DRAINED",
        "POOL_REMOVED:EMPTY",
    ]
    assert [event.detail for event in told[1:3]] == ["max_sessions", "resources.vcpus, max_sessions; generation 2"]


async def test_pages_go_both_ways_and_meet(control: Control) -> None:
    await control.create(ready_target=5)
    whole = await control.history()
    assert [event.sequence for event in whole] == list(range(1, len(whole) + 1))
    for ascending in (True, False):
        request, seen = pb.ListEventsRequest(ascending=ascending, page_size=3), []
        while True:
            page = await control.events.List(request)
            assert page.first_sequence == 1
            seen += page.events
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert seen == (whole if ascending else whole[::-1])
    since = await control.events.List(pb.ListEventsRequest(after_sequence=whole[-3].sequence))
    assert list(since.events) == whole[:-3:-1]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListEventsRequest(page_size=1001), "page_size"),
        (pb.ListEventsRequest(page_size=-1), "page_size"),
        (pb.ListEventsRequest(page_token="x"), "page_token"),
        (pb.ListEventsRequest(page_token="9" * 21), "page_token"),
        (pb.ListEventsRequest(page_token="\u0663"), "page_token"),
        (pb.ListEventsRequest(filter=pb.EventFilter(session="x" * 257)), "filter.session"),
    ],
)
async def test_a_bad_request_names_its_field(control: Control, request_: pb.ListEventsRequest, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control.events.List(request_)
    assert failure(caught).field == field


async def test_numbers_beyond_every_event_find_nothing(control: Control) -> None:
    page = await control.events.List(pb.ListEventsRequest(after_sequence=(1 << 64) - 1))
    assert not page.events and page.first_sequence == 1


async def test_a_watch_goes_on_where_another_was(control: Control) -> None:
    await control.create(ready_target=3)
    whole = await control.history()
    watch = control.events.Watch(pb.WatchEventsRequest(after_sequence=whole[2].sequence))
    first = await watch.read()
    assert list(first.events) == whole[3:] and first.last_sequence == whole[-1].sequence
    await control.update(max_sessions=50)
    second = await watch.read()
    assert kinds(second.events) == ["POOL_UPDATED:SETTINGS"] and second.last_sequence == whole[-1].sequence + 1
    watch.cancel()


async def test_a_filtered_watch_says_how_far_it_is(control: Control) -> None:
    watch = control.events.Watch(pb.WatchEventsRequest(filter=pb.EventFilter(session="alice")))
    ready = await watch.read()
    assert not ready.events and ready.last_sequence > 0
    await control.create(ready_target=1)
    await control.ensure()
    seen = await watch.read()
    assert kinds(seen.events) == ["SESSION_BEGAN:ASSIGNED"] and seen.last_sequence >= seen.events[0].sequence
    watch.cancel()


async def test_a_watch_ends_with_the_service_and_not_the_other_way(control: Control) -> None:
    watch = control.events.Watch(pb.WatchEventsRequest())
    await watch.read()
    async with asyncio.timeout(5):  # far less than streams in flight are waited for
        await control.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    # gRPC drops what it has not read, the reason too, when what it writes finds the connection closed.
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await control.start()
    assert kinds(await control.history())[0] == "NODE_REGISTERED:REGISTERED"


async def test_a_watch_says_that_the_service_ends(tmp_path: Path) -> None:
    store, stopping = SqliteStore(tmp_path / "s.db"), asyncio.Event()
    watch = EventService(store, Clock(0.0, time.monotonic, time.time), stopping).Watch(pb.WatchEventsRequest(), None)
    assert not (await anext(watch)).events
    stopping.set()
    with pytest.raises(Unavailable) as caught:
        await anext(watch)
    assert caught.value.reason == "SHUTTING_DOWN"
    await store.close()


async def test_nothing_of_a_watch_is_left(control: Control) -> None:
    before = len(asyncio.all_tasks())
    watches = [control.events.Watch(pb.WatchEventsRequest()) for _ in range(20)]
    for watch in watches:
        await watch.read()
    for watch in watches:
        watch.cancel()
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- the store ---------------------------------------------------------------------------------------------------------


def vm(vm_id: str) -> VmRow:
    return VmRow(vm_id, "p", 1, "node", "t" * 64, "PROVISIONING", 1.0)


async def test_what_failed_is_not_told(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.add_vm(vm("v1"))
    with pytest.raises(Conflict):
        await store.assign(SessionRow("p", "alice", 0, "v1", 1.0, 2.0, 3.0))
    with pytest.raises(Conflict):
        await store.add_vm(vm("v1"))
    await store.end_vms({"v1": (session_pb2.END_REASON_VM_LOST, "a\x1b[31m\nb" + "x" * 2000)}, 2.0)
    await store.end_vms({"v1": (session_pb2.END_REASON_STOPPED, "")}, 3.0)
    page = await store.events(ALL)
    assert [(event.type, event.reason, event.sequence) for event in page.events] == [
        (pb.EVENT_TYPE_VM_ADDED, "REFILL", 1),
        (pb.EVENT_TYPE_VM_ENDED, "VM_LOST", 2),
    ]
    assert page.events[1].detail.startswith("a [31m bxxx") and len(page.events[1].detail) == 1024
    await store.close()


async def test_the_oldest_go_and_no_number_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_table, "KEEP_EVENTS", 1000)
    store = SqliteStore(tmp_path / "s.db")
    for _ in range(8):
        await store.record(*(EventRow(pb.EVENT_TYPE_NODE_READY, 100.0, node_id="n") for _ in range(500)))
    page = await store.events(ALL)
    assert page.last == 4000 and 4000 - 1000 - event_table.PRUNE_EVERY - 500 <= page.first <= 3001
    for _ in range(8):  # a week later
        await store.record(*(EventRow(pb.EVENT_TYPE_NODE_READY, 100.0 + 8 * 86_400, node_id="n") for _ in range(256)))
    page = await store.events(ALL)
    assert {event.at for event in page.events} == {100.0 + 8 * 86_400}
    assert page.last == 4000 + 8 * 256
    await store.close()
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("UPDATE events SET at = 0 WHERE sequence < ?", (page.last,))
    for _ in range(20):
        event_table.prune(connection)
    assert connection.execute("SELECT count(*), max(sequence) FROM events").fetchone() == (1, page.last)
    connection.close()


async def test_a_file_of_version_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    connection = sqlite3.connect(path)
    connection.executescript(f"BEGIN; {sqlite_store.MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;")
    connection.execute("INSERT INTO nodes VALUES ('n', 'a', 't', 'b')")
    connection.execute("INSERT INTO vms VALUES ('v1', 'p', 1, 'n', 't', 'ASSIGNED', 1.0)")
    connection.execute("INSERT INTO sessions VALUES ('p', 'alice', 7, 'v1', 1.0, 2.0, 3.0)")
    connection.execute("UPDATE counters SET value = 7")
    connection.commit()
    connection.close()
    for _ in range(2):  # taken over once
        store = SqliteStore(path)
        everything = await store.load()
        assert everything.nodes == [NodeRow("n", "a", "t", "b")] and everything.sessions[0].epoch == 7
        await store.record(EventRow(pb.EVENT_TYPE_NODE_READY, 1.0))
        await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(sqlite_store.MIGRATIONS),)
    assert connection.execute("SELECT count(*) FROM events").fetchone() == (2,)
    connection.close()


async def test_readers_are_not_in_the_way_of_a_writer(tmp_path: Path) -> None:
    """A read transaction that is open does not hold up a commit."""
    store = SqliteStore(tmp_path / "s.db")
    await store.record(EventRow(pb.EVENT_TYPE_NODE_READY, 1.0))
    reader = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM events").fetchall()
    async with asyncio.timeout(10):
        await store.record(EventRow(pb.EVENT_TYPE_NODE_READY, 2.0))
    assert (await store.events(ALL)).last == 2
    reader.close()
    await store.close()
