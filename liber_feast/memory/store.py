"""The memory as a whole: opened or made, its transactions and settings, and what is appended to it."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import microseconds
from liber_feast.errors import MemoryAway, MemoryFailure, RetryableError, StoreNotReady
from liber_feast.memory import migrations
from liber_feast.memory.append import Appended, VectorsOf, append, encoded_before, items_in_play, seal_idle
from liber_feast.memory.clock import now_us
from liber_feast.memory.connect import (
    MemoryBusy,
    PoolOptions,
    database_file,
    first_line,
    in_our_words,
    make_engine,
    parse_url,
)
from liber_feast.memory.schema import runs, settings
from liber_feast.memory.settings import keep_setting, setting
from liber_feast.partition import Condition
from liber_feast.stream_metrics import record_memory_retry

FUSION_FOLDER = "fusion_folder"
"""The setting that names the fusion weights in use, relative to the feature repo."""
MEMORY_ID = "memory_id"
"""The setting that is the memory's identity."""
REPLACED = "The memory {} was replaced while this process had it open. Nothing was written; do the same again."
RETRY_S = (0.05, 2.0)
"""The shortest and the longest pause before a transaction is run again."""
MIGRATION_LOCK = 7_236_823
"""The advisory lock under which one process at a time makes or migrates a memory on PostgreSQL."""

_T = TypeVar("_T")


class MemoryReplaced(RetryableError):
    """Another database is in the place of the one that was opened; nothing was written."""


class Memory:
    """One open memory database.

    Attributes:
        engine: the SQLAlchemy engine; transactions are taken through `reading` and `writing`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        file = database_file(engine.url, base=Path())
        self._file = None if file is None else file.absolute()
        self._file_number = 0
        self._identity: str | None = None
        self._is_replaced = False
        self._writer = engine.execution_options(liber_writing=True)
        self._reader = engine
        if engine.dialect.name == "postgresql":
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @classmethod
    def open(cls, url: str, *, base: Path, create: bool = True, pool: PoolOptions | None = None) -> "Memory":
        """Open, create or migrate the memory at `url`; a relative SQLite path is relative to `base`.

        Any number of processes may open, and so make, one memory at once.

        Raises:
            StoreNotReady: `create` is false and the SQLite file is not there; no file was made.
            ConfigError: `url` names no database that SQLAlchemy could open.
            MemoryFailure: the database cannot be opened, or was written by a newer release.
            MemoryAway: its server does not answer.
            RetryableError: another process holds it for longer than a transaction waits.
        """
        parsed = parse_url(url)
        if not create:
            _check_made(parsed, base=base)
        memory = cls(make_engine(parsed, base=base, pool=pool or PoolOptions()))
        try:
            memory._make_ready(name=repr(parsed))
        except BaseException:
            memory.close()
            raise
        return memory

    def _make_ready(self, *, name: str) -> None:
        try:
            with in_our_words(self.engine, name=name):
                self.engine.connect().close()
            with self.reading() as connection:
                is_newest = _is_newest(connection)
            if not is_newest:
                with self.writing("migrate") as connection:
                    _migrate(connection)
            self._file_number = self._number_of_file()
            self._identity = self.identity if self.engine.dialect.name == "postgresql" else None
        except sa.exc.DBAPIError as error:
            raise MemoryFailure(f"The memory {name} cannot be opened: {first_line(error.orig)}.") from error

    def setting(self, name: str) -> str | None:
        """Return a setting kept with the memory, or None."""
        with self.reading() as connection:
            return setting(connection, name)

    def keep_setting(self, name: str, value: str) -> None:
        """Keep a setting with the memory."""
        self.retrying(lambda connection: keep_setting(connection, name, value), what="setting")

    def keep_report(self, facts: Mapping[str, Any], *, finished_time: int) -> None:
        """Keep what a run did, for `last_report`."""
        with self.writing("report") as connection:
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
            return str(setting(connection, MEMORY_ID))

    @property
    def is_shared(self) -> bool:
        """Whether other threads and processes see it; a memory in main memory is its thread's alone."""
        return self.engine.dialect.name != "sqlite" or database_file(self.engine.url, base=Path()) is not None

    def is_replaced(self) -> bool:
        """Return whether the file of a SQLite memory is another one or gone; on a server, whether that was seen."""
        return self._is_replaced or self._file_number not in (0, self._number_of_file())

    def _number_of_file(self) -> int:
        """Return the inode, which no other file has while this one is open; 0: there is no file."""
        try:
            return 0 if self._file is None else self._file.stat().st_ino
        except OSError:
            return -1

    def _refuse_another(self) -> None:
        if self.is_replaced():
            raise MemoryReplaced(REPLACED.format(self._file or "on the server"))

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent snapshot, for reading alone.

        Raises:
            RetryableError: another process holds the memory for longer than a transaction waits.
            MemoryAway: its server does not answer.
        """
        self._refuse_another()
        with in_our_words(self.engine), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, what: str = "") -> Iterator[sa.Connection]:  # noqa: ARG002  # a name for who watches
        """One transaction; on SQLite it takes the write lock at once, so that it cannot fail half-way for it.

        Raises:
            RetryableError: another process holds the memory for longer than a transaction waits.
            MemoryAway: its server does not answer; where it was lost in the commit, that may have been done.
            MemoryFailure: the disk is full; nothing of the transaction was written.
        """
        self._refuse_another()
        with in_our_words(self.engine), self._writer.begin() as connection:
            if self._identity is not None and self._identity != setting(connection, MEMORY_ID):
                self._is_replaced = True
                raise MemoryReplaced(REPLACED.format("on the server"))
            yield connection

    def retrying(self, work: Callable[[sa.Connection], _T], *, what: str, patience_s: float = 30.0) -> _T:
        """Do `work` in a transaction, and the whole of it again while the memory is busy or away; return its result.

        For what may be done twice: a transaction whose answer was lost may have been done. SQLite waits by itself, as
        long as its URL says, and nothing is done again.

        Raises:
            RetryableError: the memory was busy for longer than `patience_s` seconds.
            MemoryAway: it was away for longer.
        """
        patience_s = 0.0 if self.engine.dialect.name == "sqlite" else patience_s
        until, pause = time.monotonic() + patience_s, RETRY_S[0]
        while True:
            try:
                with self.writing(what) as connection:
                    return work(connection)
            except (MemoryBusy, MemoryAway) as error:
                if time.monotonic() + pause > until:
                    raise
                record_memory_retry("away" if isinstance(error, MemoryAway) else "locked")
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, RETRY_S[1])

    def now(self, connection: sa.Connection) -> int:
        """Return the database's time, microseconds since 1970 UTC."""
        return now_us(connection)

    def append(
        self,
        table: pa.Table,
        *,
        condition: Condition,
        repeated: pa.Table | None = None,
        item_vectors: VectorsOf | None = None,
        pushed_time: int | None = None,
    ) -> Appended:
        """Append a canonical behavior table (`check_behaviors`) and seal the partitions it fills.

        A behavior whose id its user has is a duplicate and changes nothing; `repeated` are those of the same source
        that were left out for one in `table`, which count as duplicates, too. One whose place in time was
        sealed before is late: it joins the end of the current cache. `pushed_time` is when the push came that
        brought it, microseconds; None: it was materialized. Where the answer to a commit was lost, it is done again
        and all of it counts as duplicates.

        Raises:
            InvalidBehaviors: ids of another type than the memory's.
            RetryableError: another process holds the memory for longer than a transaction waits.
            MemoryAway: its server does not answer.
        """
        if item_vectors is not None and len(table):  # encoding takes long: not while others wait for the lock
            with self.reading() as connection:
                items = items_in_play(connection, table)
            item_vectors = encoded_before(item_vectors, items)

        def work(connection: sa.Connection) -> Appended:
            return append(
                connection,
                table,
                condition=condition,
                repeated=repeated,
                item_vectors=item_vectors,
                pushed_time=pushed_time,
            )

        return self.retrying(work, what="append")

    def seal_idle(self, now: datetime, *, condition: Condition) -> int:
        """Seal the caches that the condition calls idle at `now`; return how many."""
        idle_at = microseconds(now)
        return self.retrying(lambda connection: seal_idle(connection, idle_at, condition=condition), what="append")


def _check_made(url: sa.URL, *, base: Path) -> None:
    path = database_file(url, base=base)
    if path is not None and not path.exists():
        raise StoreNotReady(f"There is no memory yet at {path}. Run `feast materialize` in the feature repo.")


def _is_newest(connection: sa.Connection) -> bool:
    """Return whether no step is due, so that nobody has to wait for the write lock."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(settings.name):
        return False
    if not set(settings.columns.keys()) <= {column["name"] for column in inspector.get_columns(settings.name)}:
        return False
    return setting(connection, "schema_version") == str(1 + len(migrations.STEPS))


def _migrate(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    migrations.migrate(connection)
