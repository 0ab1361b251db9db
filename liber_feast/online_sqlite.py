"""Rows into Feast's SQLite online store, the newest of each user stays.

Feast keeps event times in whole seconds there. So the order of what is online lies beside it, in a table of our own.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache, partial
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.sqlite import SqliteOnlineStore, adapt_datetime_epoch

from liber_feast.errors import LiberError, OnlineStoreAway, StoreFailure, StoreNotReady
from liber_feast.online_values import EncodedRows

LOCK_SECONDS = 10.0
"""How long a write waits for another one."""
ERASE_SECONDS = 60
"""How long the writing anew of the file waits for others."""
ROWS_PER_STATEMENT = 128
"""A power of two; more rows in a statement are no faster."""
SECONDS_KEPT = 4_096
"""Times of which it is kept what they are in Feast's table: those of a push are in each of its views."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # Feast stores naive times there
_ORDER = (
    "CREATE TABLE IF NOT EXISTS liber_order (view TEXT, entity_key BLOB, event_time INTEGER, number INTEGER,"
    " PRIMARY KEY (view, entity_key)) WITHOUT ROWID"
)
_PASS = (
    "INSERT INTO liber_order (view, entity_key, event_time, number) VALUES {rows}"
    " ON CONFLICT (view, entity_key) DO UPDATE SET event_time = excluded.event_time, number = excluded.number"
    "{condition} RETURNING entity_key"
)
_NEWEST = " WHERE (excluded.event_time, excluded.number) >= (liber_order.event_time, liber_order.number)"
_SET = (
    "INSERT INTO {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) VALUES {rows}"
    " ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, value_text = excluded.value_text,"
    " event_ts = excluded.event_ts, created_ts = excluded.created_ts"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    connection: sqlite3.Connection
    process: int
    file: int
    """Its inode: `feast teardown` deletes the file."""


class SqliteWriter:
    """Writes with a connection of its own, one write at a time."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._path = Path(SqliteOnlineStore._get_db_path(config))
        self._opened: _Opened | None = None
        self._lock = Lock()

    def write(self, view: FeatureView, rows: EncodedRows, *, force: bool = False) -> int:
        """Write the rows that are not older than what is online, all `force`d; return how many.

        Raises:
            OnlineStoreAway: another process holds the file for longer than a write waits.
            StoreNotReady: the view has no table; `feast apply` makes it.
            StoreFailure: the file cannot be written.
        """
        return self.write_together([(view, rows)], force=force)

    def write_together(self, batches: Sequence[tuple[FeatureView, EncodedRows]], *, force: bool = False) -> int:
        """Do as `write` for several views, in one transaction.

        Raises:
            OnlineStoreAway, StoreNotReady, StoreFailure: as `write`; nothing was written.
        """
        tables, written = [self._table(view) for view, _ in batches], 0
        with self._writing() as connection:
            connection.execute(_ORDER)
            for table, (_, rows) in zip(tables, batches, strict=True):
                kept = rows.take(_passed(connection, table, rows, force=force))
                _execute(connection, partial(_set, table), list(_feature_rows(kept)))
                written += len(kept.keys)
        return written

    def delete(self, view: FeatureView, keys: Sequence[bytes]) -> int:
        """Delete the rows of the keys, so that nothing of them stays in the file; return how many there were.

        Raises:
            OnlineStoreAway, StoreNotReady, StoreFailure: as `write`.
        """
        table, gone = self._table(view), 0
        with self._writing() as connection:
            connection.execute(_ORDER)
            for key in keys:
                found = connection.execute(f"DELETE FROM {quoted(table)} WHERE entity_key = ?", (key,))
                gone += found.rowcount > 0
                connection.execute("DELETE FROM liber_order WHERE view = ? AND entity_key = ?", (table, key))
        with self._lock, _in_one_line(self._path):
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return gone

    def erase(self, views: Sequence[FeatureView]) -> None:
        """Write the file anew, with every view that it has; others wait meanwhile.

        Raises:
            OnlineStoreAway: another process holds the file for longer than that waits.
            StoreFailure: the file cannot be written.
        """
        del views
        with self._lock, _in_one_line(self._path):
            connection = self._connection()
            connection.execute(f"PRAGMA busy_timeout={ERASE_SECONDS * 1_000}").fetchall()
            try:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.execute(f"PRAGMA busy_timeout={LOCK_SECONDS * 1_000:.0f}").fetchall()

    def close(self) -> None:
        """Give back the connection; the next write opens it again."""
        with self._lock:
            if self._opened is not None:
                self._opened.connection.close()
                self._opened = None

    def _table(self, view: FeatureView) -> str:
        return table_of(view, config=self._config)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _in_one_line(self._path):
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _connection(self) -> sqlite3.Connection:
        file = os.stat(self._path).st_ino if self._path.exists() else 0
        opened = self._opened
        if opened is not None and (opened.process, opened.file) == (os.getpid(), file):
            return opened.connection
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=LOCK_SECONDS, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self._opened = _Opened(connection=connection, process=os.getpid(), file=os.stat(self._path).st_ino)
        return connection


def _passed(connection: sqlite3.Connection, table: str, rows: EncodedRows, *, force: bool) -> list[int]:
    """Note the order of the rows that are not older than what is online; return their places."""
    values = list(zip([table] * len(rows.keys), rows.keys, rows.event_times, rows.numbers, strict=True))
    passed = {key for (key,) in _execute(connection, partial(_pass, force=force), values)}
    return [place for place, key in enumerate(rows.keys) if key in passed]


def _execute(
    connection: sqlite3.Connection, statement: Callable[[int], str], rows: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Execute `statement`, of a number of rows, over all `rows`; return what it returns.

    The numbers are powers of two: so there are few statements, and SQLite prepares each once.
    """
    start, found = 0, list[tuple[Any, ...]]()
    while start < len(rows):
        count = min(ROWS_PER_STATEMENT, 1 << (len(rows) - start).bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + count]))
        found += connection.execute(statement(count), values).fetchall()
        start += count
    return found


@cache
def _pass(row_count: int, *, force: bool) -> str:
    return _PASS.format(rows=", ".join(["(?, ?, ?, ?)"] * row_count), condition="" if force else _NEWEST)


@cache
def _set(table: str, row_count: int) -> str:
    return _SET.format(table=quoted(table), rows=", ".join(["(?, ?, ?, ?, ?, ?)"] * row_count))


def _feature_rows(rows: EncodedRows) -> Iterator[tuple[bytes, str, bytes, str | None, int, int]]:
    times, created = ([_seconds(one) for one in micros] for micros in (rows.event_times, rows.numbers))
    for name, values in rows.features.items():
        names = [name] * len(values)
        yield from zip(rows.keys, names, values, rows.texts[name], times, created, strict=True)


@lru_cache(maxsize=SECONDS_KEPT)
def _seconds(micros: int) -> int:
    """Return a time as Feast keeps it there."""
    return int(adapt_datetime_epoch(_EPOCH + timedelta(microseconds=micros)))


def table_of(view: FeatureView, *, config: RepoConfig) -> str:
    """Return the name of the table that Feast keeps a view in."""
    return str(compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning))


def quoted(name: str) -> str:
    """Return a name as SQLite's statements take any."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _named(error, path) from error
    except OSError as error:
        raise StoreFailure(f"The online store {path} cannot be opened: {error.strerror}.") from error


def _named(error: sqlite3.DatabaseError, path: Path) -> LiberError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OnlineStoreAway(
            f"The online store {path} is locked by another process; try again when that one is done."
        )
    if code == sqlite3.SQLITE_ERROR and "no such table" in str(error):
        return StoreNotReady(f"The online store {path} lacks a table of a feature view. Run `feast apply`.")
    return StoreFailure(f"The online store {path} cannot be written: {error}.")
