"""Make a new memory, or bring one of an earlier release to the newest version by numbered steps.

A new database gets the tables of `schema`, `call_tables` and `evidence_tables` as they are now. Everything happens in
the caller's transaction: a step that fails leaves the database as it was.
"""

import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from liber_feast.errors import MemoryFailure
from liber_feast.memory.call_tables import budget_counters, calls
from liber_feast.memory.evidence_tables import item_texts, item_vectors, partition_evidence
from liber_feast.memory.schema import (
    behaviors,
    leases,
    metadata,
    partitions,
    publications,
    published,
    recomputations,
    settings,
    text_vectors,
    texts,
    tombstones,
    users,
    waiting,
)
from liber_feast.memory.settings import keep_setting, setting

TOMBSTONE_KEY = "tombstone_key"
"""The setting with the random key of the hashes in `tombstones`."""

_SQLITE_STATISTICS = {
    "behaviors": "1000000 1000 1",
    "behaviors_cached": "20000 10",
    "behaviors_by_time": "1000000 1000 1 1",
}
"""Rows of a table, then rows per value of an index's first column, first two columns and so on.

Without them SQLite finds a cache or a partition by going through all behaviors of its user.
"""


def migrate(connection: sa.Connection) -> None:
    """Bring the database up to the newest version, in the caller's transaction.

    Raises:
        MemoryFailure: the database was written by a newer release, or is somebody else's.
    """
    tables = set(sa.inspect(connection).get_table_names()) & set(metadata.tables)
    version, newest = _version(connection) if settings.name in tables else 0, 1 + len(STEPS)
    if tables and not version:
        raise MemoryFailure(
            f"{connection.engine.url!r} has tables of another program under our names ({', '.join(sorted(tables))})."
            " Give the memory a database of its own."
        )
    if version > newest:
        raise MemoryFailure(
            f"{connection.engine.url!r} has schema version {version}; this release knows {newest}."
            " Install a newer liber-feast."
        )
    for step in (_create,) if version == 0 else STEPS[version - 1 :]:
        step(connection)
    if version < newest:
        keep_setting(connection, "schema_version", str(newest))


def _version(connection: sa.Connection) -> int:
    """Return the schema version, or 0 where the settings are not ours."""
    if not {"name", "value"} <= {column["name"] for column in sa.inspect(connection).get_columns(settings.name)}:
        return 0
    found = setting(connection, "schema_version") or ""
    return int(found) if found.isdecimal() else 0


def _create(connection: sa.Connection) -> None:
    metadata.create_all(connection)
    _keep_statistics(connection)
    keep_setting(connection, "memory_id", uuid.uuid4().hex)
    keep_setting(connection, TOMBSTONE_KEY, secrets.token_hex(32))


def _keep_statistics(connection: sa.Connection) -> None:
    if connection.dialect.name != "sqlite":
        return
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # makes the table of statistics, the first time
    connection.exec_driver_sql("DELETE FROM sqlite_stat1 WHERE tbl = 'behaviors'")
    for index, rows in _SQLITE_STATISTICS.items():
        insert = "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('behaviors', ?, ?)"
        connection.exec_driver_sql(insert, (index, rows))
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # reads it again


def _redo_and_account(connection: sa.Connection) -> None:
    """To version 2: texts can be written anew, publications know what they are made of, calls are written down.

    Whatever is published counts as made of the newest text there is, so that nothing is published twice.
    """
    _make_again(connection, (texts, text_vectors), new={texts.c.revision: sa.literal(0)})
    for column in (published.c.text_id, published.c.index_sum):
        kind = column.type.compile(connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {published.name} ADD COLUMN {column.name} {kind}")
    newest = sa.select(sa.func.max(texts.c.text_id)).scalar_subquery()
    connection.execute(published.update().values(text_id=newest))
    for table in (recomputations, calls, budget_counters):
        table.create(connection)


def _make_again(
    connection: sa.Connection, tables: Sequence[sa.Table], *, new: Mapping[sa.Column[Any], sa.ColumnElement[Any]]
) -> None:
    """Make tables anew as they are in `schema` and copy their rows; `new` has the values of columns that are new.

    A table comes before those that refer to it: SQLite lets a reference follow the table when it is renamed, so
    they move together.
    """
    for table in reversed(tables):
        for index in table.indexes:
            index.drop(connection)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO {table.name}_before")
    for table in tables:
        table.create(connection)
        columns = [new.get(column, sa.column(column.name)) for column in table.columns]
        rows = sa.select(*columns).select_from(sa.table(f"{table.name}_before"))
        connection.execute(table.insert().from_select([column.name for column in table.columns], rows))
        _continue_numbers(connection, table)
    for table in reversed(tables):
        connection.exec_driver_sql(f"DROP TABLE {table.name}_before")


def _stream(connection: sa.Connection) -> None:
    """To version 3: who waits for what, who works on it, what is online, and who was forgotten."""
    connection.exec_driver_sql("DROP INDEX behaviors_by_partition")
    for table, names in _STREAM_COLUMNS.items():
        for name in names:
            column = sa.schema.CreateColumn(table.c[name]).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column}")
    if connection.dialect.name == "postgresql":
        for id_column in (users.c.user_id, users.c.sealed_behavior_id, behaviors.c.behavior_id):
            kind = id_column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {id_column.table.name} ALTER COLUMN {id_column.name} TYPE {kind}")
    for table in (waiting, leases, tombstones):
        table.create(connection)
    for index in (*behaviors.indexes, *partitions.indexes, *publications.indexes):
        index.create(connection, checkfirst=True)
    now = time.time_ns() // 1_000
    count = sa.select(sa.func.count()).where(behaviors.c.user_key == users.c.user_key).scalar_subquery()
    connection.execute(
        users.update().values(
            behavior_count=count,
            sequence_number=now,
            sequence_published=sa.case((sa.column("is_sequence_stale"), 0), else_=now),
        )
    )
    for table, name in ((users, "is_sequence_stale"), (partitions, "lease_owner"), (partitions, "lease_until")):
        connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP COLUMN {name}")
    # Whether something of theirs is missing was not kept: whoever claims them sees.
    sealed = sa.select(users.c.user_key, sa.literal(1), sa.literal(now)).where(users.c.partition_count > 0)
    connection.execute(waiting.insert().from_select(["user_key", "number", "since"], sealed))
    _keep_statistics(connection)
    keep_setting(connection, TOMBSTONE_KEY, secrets.token_hex(32))


_STREAM_COLUMNS: Mapping[sa.Table, Sequence[str]] = {
    users: (
        "behavior_count",
        "ahead_count",
        "tied_count",
        "sequence_number",
        "sequence_published",
        "forgotten_time",
    ),
    partitions: ("pushed_time", "online_time"),
}


def _evidence(connection: sa.Connection) -> None:
    """To version 4: vectors of items, and evidence of partitions; the next run makes that of those that are sealed."""
    for table in (item_vectors, item_texts, partition_evidence):
        table.create(connection)


def _continue_numbers(connection: sa.Connection, table: sa.Table) -> None:
    """Let PostgreSQL number new rows after those that were copied; SQLite does so by itself."""
    column = table.autoincrement_column
    if column is None or connection.dialect.name != "postgresql":
        return
    newest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
    sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
    connection.execute(sa.select(sa.func.setval(sequence, newest, False)))


STEPS: tuple[Callable[[sa.Connection], None], ...] = (_redo_and_account, _stream, _evidence)
"""Step number N (from 1) brings a memory of version N to version N+1. A released one does the same for ever.

A step may use a table of `schema` only as long as its definition there does not change; who changes that gives the
step a copy of its own.
"""
