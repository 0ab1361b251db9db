"""Open the memory and append behaviors to it: append and seal are one transaction."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import microseconds
from liber_feast.errors import ConfigError, MemoryFailure
from liber_feast.memory import schema
from liber_feast.memory.append import Appended, VectorsOf, append, seal_idle
from liber_feast.partition import Condition

FUSION_FOLDER = "fusion_folder"
"""The setting that names the fusion weights in use, relative to the feature repo."""
FUSION_ACTIVATION = "fusion_activation"
"""The setting that counts how often other fusion weights came into use."""


class Memory:
    """One open memory database.

    Attributes:
        engine: the SQLAlchemy engine; transactions are taken through `reading` and `writing`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str, *, base: Path) -> "Memory":
        """Open, create or migrate the memory at `url`; a relative SQLite path is relative to `base`.

        Raises:
            ConfigError: `url` names no database that SQLAlchemy could open.
            MemoryFailure: the database cannot be opened, or was written by a newer release.
        """
        parsed = _parse(url)
        memory = cls(_connect(parsed, base=base))
        try:
            with memory.writing() as connection:
                schema.migrate(connection)
        except sa.exc.OperationalError as error:
            raise MemoryFailure(f"The memory {parsed!r} cannot be opened: {_first_line(error.orig)}.") from error
        except sa.exc.DatabaseError as error:
            raise MemoryFailure(f"The memory {parsed!r} is damaged or no memory: {_first_line(error.orig)}.") from error
        return memory

    def setting(self, name: str) -> str | None:
        """Return a setting kept with the memory, or None."""
        with self.reading() as connection:
            return connection.scalar(sa.select(schema.settings.c.value).where(schema.settings.c.name == name))

    def keep_setting(self, name: str, value: str) -> None:
        """Keep a setting with the memory."""
        with self.writing() as connection:
            connection.execute(schema.settings.delete().where(schema.settings.c.name == name))
            connection.execute(schema.settings.insert().values(name=name, value=value))

    def keep_report(self, facts: Mapping[str, Any], *, finished_time: int) -> None:
        """Keep what a run did, for `last_report`."""
        with self.writing() as connection:
            connection.execute(schema.runs.insert().values(finished_time=finished_time, report=json.dumps(facts)))

    def last_report(self) -> dict[str, Any] | None:
        """Return what the last `feast materialize` did, or None before the first."""
        with self.reading() as connection:
            newest = sa.select(schema.runs.c.report).order_by(schema.runs.c.run_id.desc()).limit(1)
            found = connection.scalar(newest)
        return None if found is None else dict(json.loads(found))

    @cached_property
    def identity(self) -> str:
        """The random name a memory gets when it is made; sinks tell memories apart by it."""
        with self.reading() as connection:
            query = sa.select(schema.settings.c.value).where(schema.settings.c.name == "memory_id")
            return str(connection.scalars(query).one())

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent snapshot."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction; on SQLite it takes the write lock at once, so that it cannot fail half-way for it."""
        with self.engine.execution_options(liber_writing=True).begin() as connection:
            yield connection

    def append(self, table: pa.Table, *, condition: Condition, item_vectors: VectorsOf | None = None) -> Appended:
        """Append a canonical behavior table (`check_behaviors`) and seal the partitions it fills.

        A behavior whose id its user has is a duplicate and changes nothing. One whose place in time was
        sealed before is late: it joins the end of the current cache.

        Raises:
            InvalidBehaviors: ids of another type than the memory's.
        """
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


def _first_line(error: object) -> str:
    return str(error).split("\n", maxsplit=1)[0].rstrip(".")


def _connect(url: sa.URL, *, base: Path) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url)
    if url.database and url.database != ":memory:":
        path = base / url.database
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemoryFailure(f"The memory {url!r} cannot be made: {path.parent}: {error.strerror}.") from error
        url = url.set(database=str(path))
    engine = sa.create_engine(url, connect_args={"timeout": 60})

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
