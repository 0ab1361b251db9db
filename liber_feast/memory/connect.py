"""Connections to the database of a memory, and its errors in our words.

No message holds a value: ids of users and texts stay where they are.
"""

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from liber_feast.driver_log import quiet_driver
from liber_feast.errors import ConfigError, MemoryAway, MemoryFailure, RetryableError

LOCK_SECONDS = 60
"""How long a transaction waits for another one; `?timeout=` in the URL of a SQLite memory says otherwise."""
CONNECT_SECONDS = 10
"""How long a server may take to answer; `?connect_timeout=` in the URL says otherwise."""
FRESH_SECONDS, FRESH_PAUSE_SECONDS = 2.0, 0.01
"""How long, and how often, the log of a file is asked for that others open for the first time, too."""
RECYCLE_SECONDS = 1_800
"""The age at which a connection to a server is replaced."""
LOG_BYTES = 64 * 1024 * 1024
"""What SQLite's write-ahead log may keep on disk once a large transaction is through."""

_DRIVERS = {("sqlite", "pysqlite"), ("postgresql", "psycopg")}


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolOptions:
    """Connections to a PostgreSQL memory."""

    size: int = 5
    overflow: int = 10
    timeout_s: float = 30.0
    """How long a transaction waits for a free connection."""


class MemoryBusy(RetryableError):
    """Another transaction was in the way; nothing was written."""


def parse_url(url: str) -> sa.URL:
    """Return the URL of a database.

    Raises:
        ConfigError: it names none that SQLAlchemy could open.
    """
    try:
        parsed = sa.make_url(url)
        parsed.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, ImportError) as error:
        raise ConfigError(
            f"batch_engine.memory: {first_line(error)}. Name a database of sqlite or postgresql+psycopg, for example"
            " sqlite:///data/memory.db."
        ) from error
    if (parsed.get_backend_name(), parsed.get_driver_name()) not in _DRIVERS:
        raise ConfigError(
            f"batch_engine.memory: {parsed.drivername} is not supported. Name a database of sqlite or"
            " postgresql+psycopg, for example sqlite:///data/memory.db."
        )
    return parsed


def database_file(url: sa.URL, *, base: Path) -> Path | None:
    """Return the file of a SQLite memory; None where it lives elsewhere."""
    in_file = url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:"
    return base / url.database if in_file and url.database else None


def make_engine(url: sa.URL, *, base: Path, pool: PoolOptions) -> sa.Engine:
    """Return an engine that survives a fork and whose errors hide parameters; nothing is connected yet.

    Raises:
        ConfigError: the folder of a SQLite file is outside the feature repo and does not exist.
        MemoryFailure: it is within, and cannot be made.
    """
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite and url.database and (folder := Path(url.database).parent).is_absolute() and not folder.is_dir():
        raise ConfigError(
            f"batch_engine.memory: the folder {folder} does not exist, and a memory is only made in one that does."
            " Correct the path, or make the folder."
        )
    engine = _to_file(url, path=database_file(url, base=base)) if is_sqlite else _to_server(url, pool=pool)
    _ENGINES.add(engine)
    return engine


def _to_server(url: sa.URL, *, pool: PoolOptions) -> sa.Engine:
    quiet_driver()
    engine = sa.create_engine(
        url,
        connect_args={} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_SECONDS},
        hide_parameters=True,
        pool_size=pool.size,
        max_overflow=pool.overflow,
        pool_timeout=pool.timeout_s,
        pool_pre_ping=True,
        pool_recycle=RECYCLE_SECONDS,
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()  # a process that stands still with a lock in its hands stops nobody for ever
        wait = f"set_config('lock_timeout', '{LOCK_SECONDS}s', false)"
        cursor.execute(f"SELECT {wait} WHERE current_setting('lock_timeout') = '0'")
        cursor.close()
        connection.commit()

    return engine


def _to_file(url: sa.URL, *, path: Path | None) -> sa.Engine:
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemoryFailure(f"The memory {url!r} cannot be made: {path.parent}: {error.strerror}.") from error
        url = url.set(database=str(path))
    waits = {} if "timeout" in url.query else {"timeout": LOCK_SECONDS}
    engine = sa.create_engine(url, connect_args=waits, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None  # the driver would otherwise begin transactions at its own moments
        cursor = connection.cursor()
        _use_write_ahead_log(cursor)
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON", f"journal_size_limit={LOG_BYTES}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("liber_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _use_write_ahead_log(cursor: sa.engine.interfaces.DBAPICursor) -> None:
    """Let a file have a write-ahead log; of processes that open a fresh one at once, one makes it.

    SQLite waits for no lock there where waiting could be for ever, and says at once that the file is locked.
    """
    until = time.monotonic() + FRESH_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(FRESH_PAUSE_SECONDS)
        else:
            return


_ENGINES: "weakref.WeakSet[sa.Engine]" = weakref.WeakSet()
_OF_PARENT: list[sa.Pool] = []
"""Connections that a forked process got with its copy of the memory: never used there and never closed."""


def _leave_to_parent() -> None:
    for engine in _ENGINES:
        _OF_PARENT.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_to_parent)


@contextmanager
def in_our_words(engine: sa.Engine, *, name: str | None = None) -> Iterator[None]:
    """Raise what the database says as an error of ours, or without values where there is none for it.

    `name` is what the memory is called in messages; None: its file or address.

    Raises:
        MemoryBusy: another transaction was in the way.
        MemoryAway: the database does not answer.
        MemoryFailure: it cannot be written or read as things are.
    """
    driver: Any = engine.dialect.dbapi
    called = name or _name(engine.url)
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise MemoryBusy(
            f"All connections to the memory {called} are in use. Try again later, or raise memory_pool.size."
        ) from error
    except (sa.exc.DBAPIError, driver.Error) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(cause, sqlite3.Error):
            ours = _of_sqlite(cause, name=called)
        else:
            _hide_values(error, cause)
            ours = _of_server(cause, name=called, is_operational=isinstance(cause, driver.OperationalError))
        if ours is None:
            raise
        raise ours from error


def _of_sqlite(cause: sqlite3.Error, *, name: str) -> RetryableError | MemoryFailure | None:
    code = getattr(cause, "sqlite_errorcode", None)
    kind = None if code is None else code & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return MemoryBusy(
            f"The memory {name} is locked by another process. Nothing was written; try again when that one is done."
        )
    if kind == sqlite3.SQLITE_FULL:
        return MemoryFailure(
            f"The memory {name} cannot grow: the disk is full. What was kept before is there; make room and run the"
            " same command again."
        )
    if kind == sqlite3.SQLITE_IOERR:
        return MemoryFailure(
            f"The memory {name} cannot be read or written: the disk is full or broken ({cause.sqlite_errorname}). What"
            " was kept before is there; make room and run the same command again."
        )
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return MemoryFailure(
            f"The memory {name} cannot be opened: {first_line(cause)}. This user must be able to write the file and"
            " its folder."
        )
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return MemoryFailure(f"The memory {name} is damaged or no memory: {first_line(cause)}.")
    return None


_BUSY = {"40001", "40P01", "55P03"}
"""Serialization failure, deadlock, lock not available in time."""
_AWAY = {"57P01", "57P02", "57P03", "57P05", "25P03", "53300"}
"""The server stops, starts, ended our session, or takes no more connections."""
_FAILURES = {
    "53100": "the disk of its server is full. What was kept before is there; make room and run the same command again",
    "25006": "its server takes no writes. Name the primary, not a replica",
    "42501": "this user has not the rights. Grant them on its schema",
}


def _of_server(cause: Any, *, name: str, is_operational: bool) -> RetryableError | MemoryFailure | None:
    state = getattr(cause, "sqlstate", None)
    if state in _BUSY:
        return MemoryBusy(
            f"The memory {name}: another transaction was in the way ({first_line(cause)}). Nothing was written; try"
            " again."
        )
    if state in _AWAY or (state or "").startswith("08") or (state is None and is_operational):
        return MemoryAway(f"The memory {name} does not answer: {first_line(cause)}. Try again when it does.")
    if state in _FAILURES:
        return MemoryFailure(f"The memory {name} cannot be written: {_FAILURES[state]}.")
    return None


def _hide_values(error: Exception, cause: Any) -> None:
    """Leave a server's main line alone: the others quote rows, as does that of a value it cannot read."""
    if not getattr(cause, "sqlstate", None):
        return  # not of the server: of a connection that is not there
    is_of_a_value = cause.sqlstate.startswith("22")
    said = type(cause).__name__ if is_of_a_value else cause.diag.message_primary or type(cause).__name__
    cause.args = (said,)
    if error is not cause:
        error.args = (f"({type(cause).__name__}) {said}",)


def _name(url: sa.URL) -> str:
    return str(url.database) if url.get_backend_name() == "sqlite" and url.database else repr(url)


def first_line(error: object) -> str:
    """Return the first line of a message, to be quoted in one of ours."""
    return str(error).split("\n", maxsplit=1)[0].rstrip(".")
