"""The events in the SQLite file: appended in the transaction of what they tell, read by a connection of their own."""

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

from pool_manager.store import KEEP_EVENTS, KEEP_EVENTS_SECONDS, EventPage, EventQuery, EventRow
from service_kit.errors import Unavailable

# No index: one more b-tree would cost every Acquire, and a filter reads at most KEEP_EVENTS rows beside the writer.
SCHEMA = """
CREATE TABLE events (sequence INTEGER PRIMARY KEY, at REAL NOT NULL, type INTEGER NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL, pool TEXT NOT NULL, session TEXT NOT NULL, epoch INTEGER NOT NULL, vm_id TEXT NOT NULL,
    node_id TEXT NOT NULL);
"""
INSERT = """INSERT INTO events (at, type, reason, detail, pool, session, epoch, vm_id, node_id)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
MAX_DETAIL = 1024
# A batch is removed at a time, and more is removed than comes.
PRUNE_EVERY, PRUNE_BATCH = 256, 512


def append(db: sqlite3.Connection, *events: EventRow) -> None:
    """Inside a transaction. The newest row is never removed, so a rowid is never given twice."""
    for event in events:
        # It is shown on terminals.
        detail = "".join(char if char.isprintable() else " " for char in event.detail[:MAX_DETAIL])
        values = (event.at, event.type, event.reason, detail, event.pool, event.session)
        db.execute(INSERT, (*values, event.epoch, event.vm_id, event.node_id))


class Pruner:
    """Removes what is too old or too much, after commits; used by the writer alone."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._changes = 0

    def after_commit(self, changes: int) -> None:
        """changes: rows that the commit touched, at least as many as its events; most of the time it costs nothing.

        An error is the next commit's to tell.
        """
        self._changes += changes
        if self._changes >= PRUNE_EVERY:
            self._changes -= PRUNE_EVERY  # what is more than that is for the next commits
            with suppress(sqlite3.Error):
                prune(self._connection)


def prune(db: sqlite3.Connection) -> None:
    """At most PRUNE_BATCH of the oldest events; how old they are is counted from the newest one, which stays."""
    db.execute(
        """WITH newest AS (SELECT sequence, at FROM events ORDER BY sequence DESC LIMIT 1),
        oldest AS (SELECT sequence, at FROM events ORDER BY sequence LIMIT ?)
        DELETE FROM events WHERE sequence IN (SELECT oldest.sequence FROM oldest, newest
        WHERE oldest.sequence < newest.sequence
        AND (oldest.sequence <= newest.sequence - ? OR oldest.at < newest.at - ?))""",
        (PRUNE_BATCH, KEEP_EVENTS, KEEP_EVENTS_SECONDS),
    )


class Reader:
    """Reads while others write. Opened by its constructor (sqlite3.Error); for any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._lock = threading.Lock()

    def select(self, query: EventQuery) -> EventPage:
        """Blocks. Raises Unavailable."""
        filters = {name: getattr(query, name) for name in ("pool", "session", "vm_id", "node_id")}
        filters = {name: value for name, value in filters.items() if value}
        where = "".join(f" AND {name} = ?" for name in filters)
        before, order = (1 << 63) - 1 if query.before is None else query.before, "ASC" if query.ascending else "DESC"
        statement = f"""SELECT type, at, reason, detail, pool, session, epoch, vm_id, node_id, sequence FROM events
            WHERE sequence > ? AND sequence < ?{where} ORDER BY sequence {order} LIMIT ?"""  # noqa: S608
        try:
            with self._lock:
                bounds = "SELECT coalesce(min(sequence), 0), coalesce(max(sequence), 0) FROM events"
                self._connection.execute("BEGIN")
                try:
                    first, last = self._connection.execute(bounds).fetchone()
                    rows = self._connection.execute(statement, (query.after, before, *filters.values(), query.limit))
                    return EventPage([EventRow(*row) for row in rows], first, last)
                finally:
                    self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise Unavailable("STORE", f"the store cannot be read: {error}") from error

    def close(self) -> None:
        """After the last select."""
        with self._lock:
            self._connection.close()
