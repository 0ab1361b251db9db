"""The memory as a whole: opened or made, its transactions and settings, and what is appended to it."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import microseconds
from liber_feast.errors import ConfigError, MemoryFailure, RetryableError, StoreNotReady
from liber_feast.memory import migrations
from liber_feast.memory.append import Appended, VectorsOf, append, encoded_before, items_in_play, seal_idle
from liber_feast.memory.schema import runs
from liber_feast.memory.settings import keep_setting, setting
from liber_feast.partition import Condition

FUSION_FOLDER = "fusion_folder"
"""The setting that names the fusion weights in use, relative to the feature repo."""
LOCK_SECONDS = 60
"""How long a transaction on SQLite waits for another one; `?timeout=` in the URL says otherwise."""


class Memory:
    """One open memory database.

    Attributes:
        engine: the SQLAlchemy engine; transactions are taken through `reading` and `writing`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(liber_writing=True)

    @classmethod
    def open(cls, url: str, *, base: Path, create: bool = True) -> "Memory":
        """Open, create or migrate the memory at `url`; a relative SQLite path is relative to `base`.

        Raises:
            StoreNotReady: `create` is false and the SQLite file is not there; no file was made.
            ConfigError: `url` names no database that SQLAlchemy could open.
            MemoryFailure: the database cannot be opened, or was written by a newer release.
            RetryableError: another process holds it for longer than a transaction waits.
        """
        parsed = _parse(url)
        if not create:
            _check_made(parsed, base=base)
        memory = cls(_connect(parsed, base=base))
        try:
            with memory.writing() as connection:
                migrations.migrate(connection)
        except sa.exc.OperationalError as error:
            raise MemoryFailure(f"The memory {parsed!r} cannot be opened: {_first_line(error.orig)}.") from error
        except sa.exc.DatabaseError as error:
            raise MemoryFailure(f"The memory {parsed!r} is damaged or no memory: {_first_line(error.orig)}.") from error
        return memory

    def setting(self, name: str) -> str | None:
        """Return a setting kept with the memory, or None."""
        with self.reading() as connection:
            return setting(connection, name)

    def keep_setting(self, name: str, value: str) -> None:
        """Keep a setting with the memory."""
        with self.writing() as connection:
            keep_setting(connection, name, value)

    def keep_report(self, facts: Mapping[str, Any], *, finished_time: int) -> None:
        """Keep what a run did, for `last_report`."""
        with self.writing() as connection:
            connection.execute(runs.insert().values(finished_time=finished_time, report=json.dumps(facts)))

    def last_report(self) -> dict[str, Any] | None:
        """Return what the last `feast materialize` did, or None before the first."""
        with self.reading() as connection:
            newest = sa.select(runs.c.report).order_by(runs.c.run_id.desc()).limit(1)
            found = connection.scalar(newest)
        return None if found is None else dict(json.loads(found))

    @cached_property
    def identity(self) -> str:
        """The random name a memory gets when it is made; sinks tell memories apart by it."""
        with self.reading() as connection:
            return str(setting(connection, "memory_id"))

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent snapshot.

        Raises:
            RetryableError: another process holds the memory for longer than a transaction waits.
        """
        with _in_one_line(self.engine.url), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, what: str = "") -> Iterator[sa.Connection]:  # noqa: ARG002  # a name for who watches
        """One transaction; on SQLite it takes the write lock at once, so that it cannot fail half-way for it.

        Raises:
            RetryableError: another process holds the memory for longer than a transaction waits.
            MemoryFailure: the disk is full; nothing of the transaction was written.
        """
        with _in_one_line(self.engine.url), self._writer.begin() as connection:
            yield connection

    def append(self, table: pa.Table, *, condition: Condition, item_vectors: VectorsOf | None = None) -> Appended:
        """Append a canonical behavior table (`check_behaviors`) and seal the partitions it fills.

        A behavior whose id its user has is a duplicate and changes nothing. One whose place in time was
        sealed before is late: it joins the end of the current cache.

        Raises:
            InvalidBehaviors: ids of another type than the memory's.
            RetryableError: another process holds the memory for longer than a transaction waits.
        """
        if item_vectors is not None and len(table):  # encoding takes long: not while others wait for the lock
            with self.reading() as connection:
                items = items_in_play(connection, table)
            item_vectors = encoded_before(item_vectors, items)
        with self.writing() as connection:
            return append(connection, table, condition=condition, item_vectors=item_vectors)

    def seal_idle(self, now: datetime, *, condition: Condition) -> int:
        """Seal the caches that the condition calls idle at `now`; return how many."""
        with self.writing() as connection:
            return seal_idle(connection, microseconds(now), condition=condition)


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        parsed.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, ImportError) as error:
        raise ConfigError(
            f"batch_engine.memory: {_first_line(error)}. Name a database, for example sqlite:///data/memory.db."
        ) from error
    return parsed


def _file(url: sa.URL, *, base: Path) -> Path | None:
    """Return the file of a SQLite memory; None where it lives elsewhere."""
    in_file = url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:"
    return base / url.database if in_file and url.database else None


def _check_made(url: sa.URL, *, base: Path) -> None:
    path = _file(url, base=base)
    if path is not None and not path.exists():
        raise StoreNotReady(f"There is no memory yet at {path}. Run `feast materialize` in the feature repo.")


@contextmanager
def _in_one_line(url: sa.URL) -> Iterator[None]:
    """Say of a locked memory and of a full disk what it is; any other error of the database stays as it is."""
    try:
        yield
    except (sa.exc.OperationalError, sqlite3.OperationalError) as error:
        cause = error.orig if isinstance(error, sa.exc.OperationalError) else error
        code = cause.sqlite_errorcode & 0xFF if isinstance(cause, sqlite3.OperationalError) else None
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise RetryableError(
                f"The memory {url.database} is locked by another process. Nothing was written; try again when that one"
                " is done."
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise MemoryFailure(
                f"The memory {url.database} cannot grow: the disk is full. What was kept before is there; make room and"
                " run the same command again."
            ) from error
        raise


def _first_line(error: object) -> str:
    return str(error).split("\n", maxsplit=1)[0].rstrip(".")


def _connect(url: sa.URL, *, base: Path) -> sa.Engine:
    """Return an engine whose errors say nothing of the values, which are ids of users and texts."""
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, hide_parameters=True)
    path = _file(url, base=base)
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
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("liber_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
