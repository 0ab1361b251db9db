"""A memory of an earlier release becomes one of this release: same schema, every row, nothing done twice."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from liber_feast.errors import MemoryFailure
from liber_feast.memory import Memory, migrations
from liber_feast.memory.schema import metadata
from liber_feast.publish import VIEWS, Publisher
from tests.failure_parts import RowSink, Runs, encode, mark, publisher_into, row_sinks
from tests.memory_parts import (
    SECOND_US,
    START_US,
    OnlineRows,
    TickingClock,
    append_all,
    behavior,
    everything,
    new_memory,
)

VERSION_1 = Path(__file__).parent / "golden" / "memory_v1.sql"
"""Three partitions of ann and of bob with all texts and vectors, the last fused vector of bob planned and not yet
written; one partition of dora without texts; a behavior of cid. Dumped by the release that made version 1."""
ENCODER = "tiny"
NOTHING = dict.fromkeys(VIEWS, 0)


def old_memory(folder: Path) -> None:
    connection = sqlite3.connect(folder / "memory.db")
    connection.executescript(VERSION_1.read_text(encoding="utf-8"))
    connection.close()


def old_rows(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(folder / "memory.db")
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    connection.close()
    return rows


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    """A memory of version 1, opened by this release."""
    old_memory(tmp_path)
    return new_memory(tmp_path)


def index_text(index: sa.engine.interfaces.ReflectedIndex) -> str:
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


def described(memory: Memory) -> dict[str, dict[str, str]]:
    """Return what the database says of its tables."""
    with memory.reading() as connection:
        inspector = sa.inspect(connection)
        asked: dict[str, Callable[[str], object]] = {
            "columns": inspector.get_columns,
            "key": inspector.get_pk_constraint,
            "references": inspector.get_foreign_keys,
            "unique": inspector.get_unique_constraints,
            "indexes": lambda name: sorted(map(index_text, inspector.get_indexes(name))),
            "options": inspector.get_table_options,
        }
        names = inspector.get_table_names()
        return {name: {what: str(ask(name)) for what, ask in asked.items()} for name in names}


def test_a_memory_of_version_1_gets_the_schema_of_a_fresh_one(memory: Memory) -> None:
    assert described(memory) == described(new_memory())
    assert set(described(memory)) == set(metadata.tables)
    with memory.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        statistics = connection.exec_driver_sql("SELECT idx, stat FROM sqlite_stat1").all()
    with new_memory().reading() as connection:
        assert statistics == connection.exec_driver_sql("SELECT idx, stat FROM sqlite_stat1").all()


def test_a_memory_of_version_1_keeps_every_row(tmp_path: Path) -> None:
    old_memory(tmp_path)
    before, memory = old_rows(tmp_path), new_memory(tmp_path)
    after = everything(memory)
    before["settings"].remove(("schema_version", "1"))
    after["settings"].remove(("schema_version", "4"))
    key = next(row for row in after["settings"] if row[0] == migrations.TOMBSTONE_KEY)
    after["settings"].remove(key)
    assert len(str(key[1])) == 64
    counts = Counter(str(row[0]) for row in before["behaviors"])
    stale = [row[-1] for row in before["users"]]
    assert [row[-2] < row[-3] for row in after["users"]] == [bool(flag) for flag in stale]
    after["users"] = [row[:-3] for row in after["users"]]
    before["users"] = [(*row[:-1], counts[str(row[0])], 0, 0) for row in before["users"]]
    before["partitions"] = [(*row[:-2], None, None) for row in before["partitions"]]
    sealed = {row[0] for row in before["partitions"]}
    before["texts"] = [(*row, 0) for row in before["texts"]]  # their revision
    newest = max(int(str(row[0])) for row in before["texts"])
    before["published"] = [(*row, newest, None) for row in before["published"]]
    del before["sqlite_stat1"]
    assert {name: sorted(rows, key=str) for name, rows in before.items()} == {
        name: sorted(rows, key=str) for name, rows in after.items() if name in before
    }
    assert {name: after[name] for name in set(after) - set(before)} == {
        "recomputations": [],
        "calls": [],
        "budget_counters": [],
        "waiting": [(user, 1, after["waiting"][0][2], 0, None, None, 0) for user in sorted(sealed, key=str)],
        "leases": [],
        "tombstones": [],
        "item_vectors": [],
        "item_texts": [],
        "partition_evidence": [],
    }


def test_a_memory_of_version_1_is_brought_up_once(memory: Memory, tmp_path: Path) -> None:
    before = everything(memory)
    memory.close()
    assert everything(new_memory(tmp_path)) == before


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A memory of version 1 that goes on in this release, beside tables that hold what the old one had published."""

    runs: Runs
    sinks: Mapping[str, RowSink]
    publisher: Publisher

    def publish(self) -> dict[str, int]:
        encode(self.runs.memory, version=ENCODER)
        return self.publisher.publish()


@pytest.fixture
def continued(memory: Memory) -> Continued:
    runs, sinks = Runs(memory=memory, clock=TickingClock(time=START_US + 10**10 * SECOND_US)), row_sinks(made=True)
    publisher = publisher_into(sinks, memory, online=OnlineRows(), clock=runs.clock, version=ENCODER)
    return Continued(runs=runs, sinks=sinks, publisher=publisher)


def test_of_a_memory_of_version_1_nothing_is_published_twice_and_what_was_begun_is_finished(
    continued: Continued,
) -> None:
    assert continued.publish() == {**NOTHING, "fused": 1}
    (row,) = continued.sinks["fused"].rows
    assert (row["user_id"], row["partition_count"]) == ("bob", 2)
    np.testing.assert_allclose(row["fused"], np.mean([[1, -1, 8, -8], [9, -9, 10, -10]], axis=0))
    assert continued.publish() == NOTHING


def test_a_memory_of_version_1_learns_what_is_missing_and_publishes_that_alone(continued: Continued) -> None:
    continued.publish()
    append_all(continued.runs.memory, [behavior(second, user="bob") for second in (6, 7)])
    assert continued.runs.asked() == [("summary", "bob", 3), ("summary", "dora", 0), ("shift", "bob", 3)]
    assert continued.publish() == {"summary": 2, "shift": 1, "vector": 2, "fused": 2}
    assert continued.publish() == NOTHING
    assert continued.runs.asked(with_failed=True) == []


def test_texts_of_a_memory_of_version_1_that_are_written_anew_are_published_with_what_is_made_of_them(
    continued: Continued,
) -> None:
    continued.publish()
    continued.runs.asked()
    continued.publish()
    assert mark(continued.runs.memory, since=START_US + 5 * SECOND_US, stages=["summary"]) == 2
    assert continued.runs.asked(says=" anew") == [("summary", "ann", 2), ("summary", "bob", 2)]
    assert continued.publish() == {"summary": 2, "shift": 0, "vector": 2, "fused": 2}
    assert continued.publish() == NOTHING


def test_a_memory_of_a_newer_release_is_refused_and_unharmed(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    memory.keep_setting("schema_version", str(len(migrations.STEPS) + 2))
    before = everything(memory)
    with pytest.raises(MemoryFailure, match=r"schema version 5; this release knows 4\. Install a newer liber-feast"):
        new_memory(tmp_path)
    assert everything(memory) == before


def test_a_step_that_fails_leaves_the_memory_as_it_was_and_the_next_try_brings_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (made INTEGER)")
        connection.exec_driver_sql("SELECT no_such")

    def next_step(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE users ADD COLUMN color TEXT")

    old_memory(tmp_path)
    before, steps = old_rows(tmp_path), migrations.STEPS
    monkeypatch.setattr(migrations, "STEPS", (*steps, broken_step))
    with pytest.raises(MemoryFailure, match="cannot be opened: no such column: no_such"):
        new_memory(tmp_path)
    assert old_rows(tmp_path) == before
    monkeypatch.setattr(migrations, "STEPS", (*steps, next_step))
    assert new_memory(tmp_path).setting("schema_version") == "5"
    assert new_memory(tmp_path).setting("schema_version") == "5"


def test_a_table_of_another_program_under_a_name_that_this_release_needs_is_refused_and_left_alone(
    tmp_path: Path,
) -> None:
    old_memory(tmp_path)
    connection = sqlite3.connect(tmp_path / "memory.db")
    connection.execute("CREATE TABLE calls (number TEXT)")
    connection.close()
    before = old_rows(tmp_path)
    with pytest.raises(MemoryFailure, match="cannot be opened: table calls already exists"):
        new_memory(tmp_path)
    assert old_rows(tmp_path) == before
