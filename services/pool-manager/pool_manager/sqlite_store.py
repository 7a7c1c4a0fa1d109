"""The embedded store: SQLite with one writer thread and group commit; durable at the answer (synchronous=FULL)."""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pool_manager import event_table, happened, metrics
from pool_manager.store import (
    KEEP_ENDED_SECONDS,
    Conflict,
    EndedRow,
    EventPage,
    EventQuery,
    EventRow,
    Everything,
    NodeRow,
    PoolRow,
    SessionRow,
    VmRow,
)
from service_kit.errors import Unavailable

T = TypeVar("T")
Connection = sqlite3.Connection

# Writes that share one commit.
MAX_GROUP = 256
# Each is what a file of the version before it lacks; one that was released is never changed.
MIGRATIONS = (
    """
CREATE TABLE pools (name TEXT PRIMARY KEY, spec BLOB NOT NULL, generation INTEGER NOT NULL, deleting INTEGER NOT NULL,
    created_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE vms (vm_id TEXT PRIMARY KEY, pool TEXT NOT NULL, generation INTEGER NOT NULL, node_id TEXT NOT NULL,
    template_id TEXT NOT NULL, state TEXT NOT NULL, created_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (pool TEXT NOT NULL, identifier TEXT NOT NULL, epoch INTEGER NOT NULL, vm_id TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL, expires_at REAL NOT NULL, cooldown_seconds REAL NOT NULL,
    PRIMARY KEY (pool, identifier)) WITHOUT ROWID;
CREATE TABLE ended (pool TEXT NOT NULL, identifier TEXT NOT NULL, epoch INTEGER NOT NULL, reason INTEGER NOT NULL,
    ended_at REAL NOT NULL, PRIMARY KEY (pool, identifier)) WITHOUT ROWID;
CREATE INDEX ended_by_time ON ended (ended_at);
CREATE TABLE nodes (node_id TEXT PRIMARY KEY, agent_address TEXT NOT NULL, tunnel_address TEXT NOT NULL,
    boot_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('epoch', 0);
""",
    "CREATE TABLE clock (boot_id TEXT PRIMARY KEY, seconds REAL NOT NULL) WITHOUT ROWID;",
    event_table.SCHEMA,
)


class StoreUnusable(Exception):
    """The file cannot be opened, or is of a later version; the message names it."""


class SqliteStore:
    """A Store. Opened by its constructor (blocks; StoreUnusable), closed by close()."""

    def __init__(self, path: Path) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._writable: bool | None = None
        self._why = ""
        self._tell: Callable[[bool, str], None] = lambda _writable, _detail: None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._connection = _open(path)
            self._events = event_table.Reader(path)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnusable(f"{path}: {error}") from error
        self._events_added = asyncio.Event()
        self._pruner = event_table.Pruner(self._connection)
        self._thread = threading.Thread(target=self._write_for_ever, name="store", daemon=True)
        self._thread.start()

    # -- the writer ------------------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[Connection], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, future))
        return await future

    def _write_for_ever(self) -> None:
        while True:
            group = self._next_group()
            if group is None:
                self._connection.close()
                return
            begun, before = time.perf_counter(), self._connection.total_changes
            outcomes, why = self._commit(group)
            seconds = time.perf_counter() - begun
            if self._writable is not (not why):
                self._writable, self._why = not why, why
                self._loop.call_soon_threadsafe(self._tell, not why, why)
            changes = self._connection.total_changes - before
            self._loop.call_soon_threadsafe(self._settle, outcomes, changes > 0)
            metrics.count_commit(seconds, len(group), not why)
            self._pruner.after_commit(changes)

    def _next_group(self) -> "list[_Job] | None":
        job = self._jobs.get()
        if job is None:
            return None
        group = [job]
        while len(group) < MAX_GROUP:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            group.append(job)
        return group

    def _commit(self, group: "list[_Job]") -> "tuple[list[tuple[_Job, Any]], str]":
        """Run every job inside one transaction; a job that fails takes back only its own changes.

        Returns the outcome of each, and why nothing could be written.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [(job, self._run(job)) for job in group]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:  # a full disk: nothing of the group is kept
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return [(job, Unavailable("STORE", f"the store cannot write: {error}")) for job in group], str(error)
        return outcomes, ""

    def _run(self, job: "_Job") -> Any:
        self._connection.execute("SAVEPOINT job")
        try:
            result: Any = job.work(self._connection)
        except sqlite3.IntegrityError as error:
            self._connection.execute("ROLLBACK TO job")
            result = Conflict(str(error))
        except sqlite3.Error:
            raise
        except Exception as error:  # a Conflict, or a fault of ours, which must not end this thread
            self._connection.execute("ROLLBACK TO job")
            result = error
        self._connection.execute("RELEASE job")
        return result

    def on_writable(self, tell: Callable[[bool, str], None]) -> None:
        """Before the first write: who is told when it can or cannot."""
        self._tell = tell
        if self._writable is not None:
            tell(self._writable, self._why)

    async def check(self) -> None:
        """A write that changes nothing."""
        await self._do(lambda db: db.execute("UPDATE counters SET value = value WHERE name = 'epoch'") and None)

    def _settle(self, outcomes: "list[tuple[_Job, Any]]", changed: bool) -> None:
        for job, outcome in outcomes:
            if job.future.done():  # its caller has left: the change is made all the same
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        if changed:  # there is no change that no event tells
            self._events_added.set()
            self._events_added = asyncio.Event()

    async def close(self) -> None:
        """After everything that is under way."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._events.close)

    # -- rows ------------------------------------------------------------------------------------------------------

    async def clock_offset(self, boot_id: str, offset: float) -> float:
        """Of this boot."""

        def offset_of_boot(db: Connection) -> float:
            db.execute("DELETE FROM clock WHERE boot_id != ?", (boot_id,))
            db.execute("INSERT OR IGNORE INTO clock VALUES (?, ?)", (boot_id, offset))
            return float(db.execute("SELECT seconds FROM clock").fetchone()[0])

        return await self._do(offset_of_boot)

    async def load(self) -> Everything:
        """All rows."""
        return await self._do(
            lambda db: Everything(
                [PoolRow(n, s, g, bool(d), c) for n, s, g, d, c in db.execute("SELECT * FROM pools")],
                [VmRow(*row) for row in db.execute("SELECT * FROM vms")],
                [SessionRow(*row) for row in db.execute("SELECT * FROM sessions")],
                [NodeRow(*row) for row in db.execute("SELECT * FROM nodes")],
            )
        )

    async def save_pool(self, row: PoolRow, was: PoolRow | None, *events: EventRow) -> None:
        """Insert, or change it as it was."""

        def save(db: Connection) -> None:
            known = db.execute("SELECT * FROM pools WHERE name = ?", (row.name,)).fetchone()
            if known != (None if was is None else _pool(was)):
                raise Conflict("the pool was changed meanwhile")
            db.execute("INSERT OR REPLACE INTO pools VALUES (?, ?, ?, ?, ?)", _pool(row))
            event_table.append(db, *events)

        await self._do(save)

    async def remove_pool(self, name: str, *events: EventRow) -> None:
        """With everything that was kept of its sessions."""

        def remove(db: Connection) -> None:
            db.execute("DELETE FROM ended WHERE pool = ?", (name,))
            db.execute("DELETE FROM pools WHERE name = ?", (name,))
            event_table.append(db, *events)

        await self._do(remove)

    async def save_node(self, row: NodeRow, *events: EventRow) -> None:
        """Insert or replace."""
        values = (row.node_id, row.agent_address, row.tunnel_address, row.boot_id)

        def save(db: Connection) -> None:
            db.execute("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?)", values)
            event_table.append(db, *events)

        await self._do(save)

    async def add_vm(self, row: VmRow) -> None:
        """Before its creation is asked for."""
        values = (row.vm_id, row.pool, row.generation, row.node_id, row.template_id, row.state, row.created_at)

        def add(db: Connection) -> None:
            db.execute("INSERT INTO vms VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            event_table.append(db, happened.vm_added(row))

        await self._do(add)

    async def set_warm(self, vm_id: str, now: float) -> None:
        """PROVISIONING to WARM."""
        statement = "UPDATE vms SET state = 'WARM' WHERE vm_id = ? AND state = 'PROVISIONING' RETURNING pool, node_id"

        def warm(db: Connection) -> None:
            for pool, node_id in db.execute(statement, (vm_id,)).fetchall():
                event_table.append(db, happened.vm_warm(pool, vm_id, node_id, now))

        await self._do(warm)

    async def assign(self, session: SessionRow) -> tuple[int, EndedRow | None]:
        """WARM to ASSIGNED, the session row, a new epoch."""

        def assign(db: Connection) -> tuple[int, EndedRow | None]:
            statement = "UPDATE vms SET state = 'ASSIGNED' WHERE vm_id = ? AND state = 'WARM' RETURNING node_id"
            free = db.execute(statement, (session.vm_id,)).fetchall()
            if not free:
                raise Conflict("the VM is not free")
            statement = "UPDATE counters SET value = value + 1 WHERE name = 'epoch' RETURNING value"
            epoch = int(db.execute(statement).fetchall()[0][0])
            row = (session.pool, session.identifier, epoch, session.vm_id)
            times = (session.created_at, session.expires_at, session.cooldown_seconds)
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", row + times)
            event_table.append(db, happened.session_began(session, epoch, free[0][0]))
            since = session.created_at - KEEP_ENDED_SECONDS
            return epoch, _ended(db, session.pool, session.identifier, since)

        return await self._do(assign)

    async def end_vms(self, ends: Mapping[str, tuple[int, str]], now: float) -> None:
        """The VMs and their sessions are gone, and why is kept."""

        def end(db: Connection) -> None:
            for vm_id, (reason, detail) in ends.items():
                _end(db, vm_id, happened.End(reason, now, detail))
            db.execute("DELETE FROM ended WHERE ended_at < ?", (now - KEEP_ENDED_SECONDS,))

        await self._do(end)

    async def ended(self, pool: str, identifier: str, since: float) -> EndedRow | None:
        """How the last session of that name ended."""
        return await self._do(lambda db: _ended(db, pool, identifier, since))

    # -- events ----------------------------------------------------------------------------------------------------

    async def record(self, *events: EventRow) -> None:
        """What changed no row."""
        await self._do(lambda db: event_table.append(db, *events))

    async def events(self, query: EventQuery) -> EventPage:
        """By a connection of its own."""
        return await asyncio.to_thread(self._events.select, query)

    def events_added(self) -> asyncio.Event:
        """Set by the next commit."""
        return self._events_added


class _Job:
    def __init__(self, work: Callable[[Connection], Any], future: "asyncio.Future[Any]") -> None:
        self.work, self.future = work, future


def _pool(row: PoolRow) -> tuple[str, bytes, int, bool, float]:
    return (row.name, row.spec, row.generation, row.deleting, row.created_at)


def _end(db: Connection, vm_id: str, end: happened.End) -> None:
    """One VM inside a transaction."""
    statement = "DELETE FROM sessions WHERE vm_id = ? RETURNING pool, identifier, epoch"
    sessions = db.execute(statement, (vm_id,)).fetchall()
    vms = db.execute("DELETE FROM vms WHERE vm_id = ? RETURNING pool, node_id", (vm_id,)).fetchall()
    for pool, node_id in vms:
        for row in sessions:
            db.execute("INSERT OR REPLACE INTO ended VALUES (?, ?, ?, ?, ?)", (*row, end.reason, end.at))
            event_table.append(db, happened.session_ended(end, pool, vm_id, node_id, row[1], row[2]))
        event_table.append(db, happened.vm_ended(end, pool, vm_id, node_id))


def _ended(db: Connection, pool: str, identifier: str, since: float) -> EndedRow | None:
    statement = "SELECT epoch, reason, ended_at FROM ended WHERE pool = ? AND identifier = ? AND ended_at >= ?"
    row = db.execute(statement, (pool, identifier, since)).fetchone()
    return EndedRow(*row) if row else None


def _open(path: Path) -> Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        _migrate(connection)
    except BaseException:
        connection.close()  # which a refused file would wait for until the collector comes by
        raise
    return connection


def _migrate(connection: Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError(f"written by a later version of sandpool ({version} > {len(MIGRATIONS)})")
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN; {statements} PRAGMA user_version = {number}; COMMIT;")
