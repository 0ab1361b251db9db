"""A memory of an earlier release on PostgreSQL becomes what the same memory on SQLite becomes.

The golden files of PostgreSQL are the tables as those releases made them. Their rows are those of SQLite: on
PostgreSQL the releases took behaviors and sealed partitions, and failed at the first text.
"""

import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from liber_feast.errors import LiberError, MemoryFailure
from liber_feast.memory import Memory, migrations
from liber_feast.memory.schema import metadata
from tests import services
from tests.failure_parts import Runs, encode, publisher_into, row_sinks
from tests.memory_parts import SECOND_US, START_US, OnlineRows, TickingClock, append_all, behavior, new_memory
from tests.test_memory_migrations import described

postgres_url = services.postgres_url
GOLDEN = Path(__file__).parent / "golden"
ENCODER = "tiny"


def sqlite_file(folder: Path, version: int) -> Path:
    """Make a memory of a version on SQLite; return its file."""
    path = folder / "memory.db"
    connection = sqlite3.connect(path)
    connection.executescript((GOLDEN / f"memory_v{version}.sql").read_text(encoding="utf-8"))
    connection.close()
    return path


def make_old(url: str, version: int, *, rows_of: Path) -> None:
    """Make a memory of a version on PostgreSQL with the rows of one on SQLite."""
    source, server = sqlite3.connect(rows_of), sa.create_engine(url)
    with server.begin() as connection:
        connection.exec_driver_sql((GOLDEN / f"memory_v{version}_postgres.sql").read_text(encoding="utf-8"))
        old = sa.MetaData()
        old.reflect(connection)
        for table in old.sorted_tables:
            names = [column.name for column in table.columns]
            rows = source.execute(f"SELECT {', '.join(names)} FROM {table.name}").fetchall()
            flags = [column.name for column in table.columns if isinstance(column.type, sa.Boolean)]
            if rows:
                some = [dict(zip(names, row, strict=True)) for row in rows]
                connection.execute(table.insert(), [row | {name: bool(row[name]) for name in flags} for row in some])
            key = table.autoincrement_column
            if key is not None and key.server_default is not None:  # as if the rows had been numbered by it
                sequence = sa.func.pg_get_serial_sequence(table.name, key.name)
                newest = sa.select(sa.func.coalesce(sa.func.max(key), 0) + 1).scalar_subquery()
                connection.execute(sa.select(sa.func.setval(sequence, newest, False)))
    source.close()
    server.dispose()


def held(memory: Memory) -> dict[str, list[dict[str, Any]]]:
    """Return every row by column, but for what the moment of the migration or chance decides."""
    found = {}
    with memory.reading() as connection:
        for table in metadata.sorted_tables:
            rows = [dict(row._mapping) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            found[table.name] = rows
    for row in found["users"]:
        now, shown = row.pop("sequence_number"), row.pop("sequence_published")
        row["is_shown"], row["is_numbered"] = now == shown, now > 0
    for row in found["waiting"]:
        assert row.pop("since") > 0
    found["settings"] = [row for row in found["settings"] if row["name"] != migrations.TOMBSTONE_KEY]
    return found


def opened_pair(url: str, folder: Path, version: int) -> tuple[Memory, Memory]:
    """Return the memory of a version on SQLite and on PostgreSQL, both opened by this release."""
    make_old(url, version, rows_of=sqlite_file(folder, version))
    return new_memory(folder), Memory.open(url, base=folder)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_old_memory_on_postgresql_holds_what_the_same_one_on_sqlite_does(
    postgres_url: str, tmp_path: Path, version: int
) -> None:
    on_sqlite, on_postgres = opened_pair(postgres_url, tmp_path, version)
    found, expected = held(on_postgres), held(on_sqlite)
    for name in expected:
        assert found[name] == expected[name], name
    assert len(found["texts"]) == {1: 10, 2: 27, 3: 10}[version]
    assert {row["name"]: row["value"] for row in found["settings"]}["schema_version"] == str(1 + len(migrations.STEPS))
    again = Memory.open(postgres_url, base=tmp_path)
    assert held(again) == found
    for memory in (on_sqlite, on_postgres, again):
        memory.close()


SEQUENCE = re.compile(r"nextval\('[^']*'::regclass\)")
COMMENT = re.compile(r"""'comment': (?:None|'[^']*'|"[^"]*")""")


def said(memory: Memory) -> dict[str, dict[str, str]]:
    """Return what the database says of its tables, but for comments and for names that it made up."""
    found = {}
    for table, facts in described(memory).items():
        made_up = re.compile(rf"\b{table}_(?:\w+_)?(pkey|key|fkey)\d*\b")
        found[table] = {
            what: COMMENT.sub("", SEQUENCE.sub("nextval", made_up.sub(r"\1", text))) for what, text in facts.items()
        }
    return found


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_old_memory_on_postgresql_gets_the_schema_of_a_fresh_one(
    postgres_url: str, tmp_path: Path, version: int
) -> None:
    make_old(postgres_url, version, rows_of=sqlite_file(tmp_path, version))
    memory = Memory.open(postgres_url, base=tmp_path)
    with services.postgres_schema() as url:
        fresh = Memory.open(url, base=tmp_path)
        assert said(memory) == said(fresh)
        fresh.close()
    memory.close()


def continued(memory: Memory) -> list[Any]:
    """Publish, append, learn and publish again; return what was written and asked for."""
    clock, sinks = TickingClock(time=START_US + 10**11 * SECOND_US), row_sinks(made=True)
    publisher = publisher_into(sinks, memory, online=OnlineRows(), clock=clock, version=ENCODER)
    runs, done = Runs(memory=memory, clock=clock), list[Any]()
    done.append(publisher.publish())
    append_all(memory, [behavior(second, user=user) for user in ("bob", "eve") for second in (50, 51, 52)])
    done.append(runs.asked(with_failed=True))
    encode(memory, version=ENCODER)
    done.append(publisher.publish())
    done.append(publisher.publish())
    rows = [repr(sorted(row.items(), key=lambda item: item[0])) for sink in sinks.values() for row in sink.rows]
    return [*done, sorted(rows)]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_old_memory_on_postgresql_goes_on_as_the_same_one_on_sqlite_does(
    postgres_url: str, tmp_path: Path, version: int
) -> None:
    on_sqlite, on_postgres = opened_pair(postgres_url, tmp_path, version)
    expected = continued(on_sqlite)
    assert continued(on_postgres) == expected
    assert ("summary", "eve", 0) in expected[1]
    assert set(expected[3].values()) == {0}
    for memory in (on_sqlite, on_postgres):
        memory.close()


def test_of_several_that_open_an_old_memory_on_postgresql_at_once_one_migrates_it(
    postgres_url: str, tmp_path: Path
) -> None:
    make_old(postgres_url, 2, rows_of=sqlite_file(tmp_path, 2))
    start, memories, failures = threading.Barrier(4), list[Memory](), list[LiberError]()

    def open_it() -> None:
        start.wait()
        try:
            memories.append(Memory.open(postgres_url, base=tmp_path))
        except LiberError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert held(memories[0]) == held(new_memory(tmp_path))
    for memory in memories:
        memory.close()


def test_a_step_that_fails_leaves_an_old_memory_on_postgresql_as_it_was(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SELECT no_such")

    make_old(postgres_url, 1, rows_of=sqlite_file(tmp_path, 1))
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "STEPS", (*migrations.STEPS, broken_step))
        with pytest.raises(MemoryFailure, match="cannot be opened: column .*no_such.* does not exist"):
            Memory.open(postgres_url, base=tmp_path)
    memory = Memory.open(postgres_url, base=tmp_path)
    assert held(memory) == held(new_memory(tmp_path))
    memory.close()
