"""Opening the memory, its migrations and settings, and what it says of itself."""

import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from liber_feast.errors import ConfigError, MemoryAway, MemoryFailure, RetryableError, StoreNotReady
from liber_feast.memory import Memory, schema
from liber_feast.memory.behavior_rows import cached_rows
from liber_feast.memory.bulk import execute_many, join_pairs, pair_parameters
from liber_feast.memory.status import memory_status
from liber_feast.memory.texts import newest_texts, sealed_behaviors, sealed_partitions
from liber_feast.memory.user_states import lock, user_keys
from liber_feast.memory.vectors import add_vectors
from liber_feast.sequences import SequenceRows
from tests import services
from tests.memory_parts import (
    TWO,
    EchoLearner,
    append_all,
    behavior,
    contents,
    everything,
    learn_all,
    new_memory,
    table_of,
)

memory_url = services.memory_url

URL = "sqlite:///memory.db"


def refusal(folder: Path, url: str = URL) -> str:
    with pytest.raises(MemoryFailure) as caught:
        Memory.open(url, base=folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def sqlite(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "memory.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_fresh_memory_has_the_newest_schema_and_a_name_of_its_own(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    assert memory.setting("schema_version") == "4"
    assert memory.identity != new_memory().identity


def test_a_memory_opened_again_is_the_same_memory(tmp_path: Path) -> None:
    first = new_memory(tmp_path)
    append_all(first, [behavior(second) for second in range(5)])
    learn_all(first)
    before, identity = everything(first), first.identity
    first.close()
    again = new_memory(tmp_path)
    assert again.identity == identity
    assert everything(again) == before


def test_a_memory_in_a_folder_that_is_not_there_makes_the_folder(tmp_path: Path) -> None:
    Memory.open("sqlite:///data/deeper/memory.db", base=tmp_path)
    assert (tmp_path / "data" / "deeper" / "memory.db").is_file()


def test_an_absolute_path_is_not_relative_to_the_repo(tmp_path: Path) -> None:
    Memory.open(f"sqlite:///{tmp_path / 'memory.db'}", base=Path("/nowhere"))
    assert (tmp_path / "memory.db").is_file()


def test_a_memory_that_is_not_to_be_made_is_asked_for_in_one_line_and_no_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreNotReady, match="Run `feast materialize`"):
        Memory.open("sqlite:///data/memory.db", base=tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []
    identity = new_memory(tmp_path).identity
    assert Memory.open(URL, base=tmp_path, create=False).identity == identity


def test_a_memory_that_another_process_holds_says_so_in_one_line_and_works_afterwards(tmp_path: Path) -> None:
    new_memory(tmp_path).close()
    memory = Memory.open(f"{URL}?timeout=0.05", base=tmp_path)
    other = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for url in (None, f"{URL}?timeout=0.05"):
        with pytest.raises(RetryableError) as caught:
            append_all(memory if url is None else Memory.open(url, base=tmp_path), [behavior(1)])
        assert caught.value.message == (
            f"The memory {tmp_path / 'memory.db'} is locked by another process."
            " Nothing was written; try again when that one is done."
        )
    other.execute("ROLLBACK")
    other.close()
    assert contents(memory).caches == {}
    append_all(memory, [behavior(1)])
    assert len(contents(memory).caches["ann"]) == 1


def test_an_error_that_is_no_lock_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(sa.exc.OperationalError), new_memory(tmp_path).reading() as connection:
        connection.execute(sa.text("SELECT * FROM nothing"))


def test_a_full_disk_is_said_in_one_line_and_what_was_kept_before_is_there(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [behavior(1)])
    before = everything(memory)
    with memory.reading() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no more pages than there are, as on a full disk
    with pytest.raises(MemoryFailure) as caught:
        append_all(memory, [behavior(second, item="x" * 1_000) for second in range(2, 1_000)])
    assert caught.value.message == (
        f"The memory {tmp_path / 'memory.db'} cannot grow: the disk is full. What was kept before is there; make room"
        " and run the same command again."
    )
    memory.close()
    assert everything(new_memory(tmp_path)) == before


@pytest.mark.parametrize("is_file", [True, False], ids=["in a file", "in main memory"])
def test_no_error_of_the_database_names_a_user_or_holds_a_text(tmp_path: Path, is_file: bool) -> None:
    memory = new_memory(tmp_path if is_file else None)
    row = {"name": "the-user-id", "value": "a text"}
    many = {name: [value, value] for name, value in row.items()}
    with pytest.raises(sa.exc.IntegrityError) as one, memory.writing() as connection:
        connection.execute(schema.settings.insert(), [row, row])
    with pytest.raises(sa.exc.IntegrityError) as other, memory.writing() as connection:
        execute_many(connection, schema.settings.insert(), many)
    assert "UNIQUE constraint failed" in str(one.value)
    shown = f"{one.value!s}{one.value!r}{other.value!s}{other.value!r}"
    assert "the-user-id" not in shown
    assert "a text" not in shown


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_text("user,item\n" * 500, encoding="utf-8")
    assert "is damaged or no memory" in refusal(tmp_path)
    assert path.read_text(encoding="utf-8") == "user,item\n" * 500


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE users (name TEXT)",),
        ("CREATE TABLE settings (key TEXT)",),
        ("CREATE TABLE settings (name TEXT, value TEXT)",),
        ("CREATE TABLE settings (name TEXT, value TEXT)", "INSERT INTO settings VALUES ('schema_version', 'two')"),
    ],
    ids=["users", "settings with other columns", "settings without a version", "a version that is no number"],
)
def test_tables_of_another_program_are_refused_and_left_alone(tmp_path: Path, statements: tuple[str, ...]) -> None:
    sqlite(tmp_path, *statements)
    message = refusal(tmp_path)
    assert "has tables of another program under our names" in message
    found = sqlite3.connect(tmp_path / "memory.db")
    names = found.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
    found.close()
    assert names == (1,)


def test_tables_of_another_program_under_other_names_may_stay(tmp_path: Path) -> None:
    sqlite(tmp_path, "CREATE TABLE orders (number INTEGER)")
    assert "orders" in everything(new_memory(tmp_path))


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory.db").mkdir()
    assert "cannot be opened: unable to open database file" in refusal(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    assert "cannot be made" in refusal(tmp_path, "sqlite:///data/memory.db")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data/memory.db", "Could not parse"),
        ("oracel://host/name", "oracel"),
        ("mysql://host/name", "MySQLdb"),
        ("postgresql+psycopg_async://host/name", "is not supported"),
    ],
    ids=["no url", "unknown database", "missing driver", "another driver"],
)
def test_a_url_that_names_no_usable_database_is_refused_in_one_line(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        Memory.open(url, base=tmp_path)
    assert caught.value.message.startswith("batch_engine.memory: ")
    assert "\n" not in caught.value.message


def test_no_message_shows_a_password(tmp_path: Path) -> None:
    with pytest.raises(MemoryAway) as caught:
        Memory.open("postgresql+psycopg://me:secret@127.0.0.1:1/memory", base=tmp_path)
    address = "postgresql+psycopg://me:***@127.0.0.1:1/memory"
    assert caught.value.message.startswith(f"The memory {address} does not answer")
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_memories_opened_at_the_same_moment_are_one_memory(memory_url: str) -> None:
    start, names = threading.Barrier(6), []

    def open_one() -> None:
        start.wait()
        memory = Memory.open(memory_url, base=Path())
        names.append(memory.identity)
        memory.close()

    threads = [threading.Thread(target=open_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 6
    assert len(set(names)) == 1


def test_users_appended_from_many_threads_at_once_are_all_there(memory_url: str) -> None:
    memory, start = Memory.open(memory_url, base=Path()), threading.Barrier(4)

    def append_some(user: int) -> None:
        start.wait()
        for second in range(10):
            own = behavior(second, user=f"user {user}")
            append_all(memory, [own, behavior(second, user="shared", name=f"{user}/{second}")])

    threads = [threading.Thread(target=append_some, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = contents(memory)
    assert all(len(found.behavior_ids(f"user {user}")) == 10 for user in range(4))
    assert sorted(found.behavior_ids("shared")) == sorted(
        f"{user}/{second}" for user in range(4) for second in range(10)
    )
    memory.close()


def test_settings_are_kept_and_replaced(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    assert memory.setting("fusion_folder") is None
    memory.keep_setting("fusion_folder", "data/fusion/1")
    memory.keep_setting("fusion_folder", "data/fusion/2")
    memory.close()
    assert new_memory(tmp_path).setting("fusion_folder") == "data/fusion/2"


def test_the_last_report_is_the_one_kept_last() -> None:
    memory = new_memory()
    assert memory.last_report() is None
    memory.keep_report({"summary_count": 1}, finished_time=2)
    memory.keep_report({"summary_count": 3, "seconds": {"append": 0.5}}, finished_time=1)
    assert memory.last_report() == {"summary_count": 3, "seconds": {"append": 0.5}}


def test_the_status_of_a_fresh_memory_is_zero() -> None:
    with new_memory().reading() as connection:
        facts = memory_status(connection)
    assert {name for name, value in facts.items() if value} == set()


def test_the_status_counts_what_is_there() -> None:
    memory = new_memory()
    append_all(memory, [behavior(second) for second in range(5)])
    append_all(memory, [behavior(second, user="bob") for second in range(2)])
    learn_all(memory)
    append_all(memory, [behavior(second) for second in (0.5, 1, 7)])
    with memory.writing() as connection:
        broken = schema.partitions.update().where(schema.partitions.c.partition_index == 2)
        connection.execute(broken.values(failure="no answer"))
        add_vectors(connection, {}, encoder_version="none")
        add_vectors(connection, {1: b"", 2: b""}, encoder_version="bert-pca")
        connection.execute(schema.publications.insert().values(stage="summary", created_time=1))
        connection.execute(schema.publications.insert().values(stage="shift", created_time=1, done_time=2))
    with memory.reading() as connection:
        assert memory_status(connection) == {
            "users": 2,
            "behaviors": 9,
            "cached_behaviors": 1,
            "late_behaviors": 1,
            "duplicate_behaviors": 1,
            "sealed_partitions": 4,
            "pending_partitions": 0,
            "failed_partitions": 1,
            "recomputations": 0,
            "summaries": 3,
            "shifts": 1,
            "unfinished_publications": 1,
            "conditions": {"count(2)": 4},
            "prompt_versions": {"test-1": 4},
            "models": {"echo-1": 4},
            "text_versions": {"shift test-1/echo-1": 1, "summary test-1/echo-1": 3},
            "encoder_versions": {"bert-pca": 2},
            "item_vectors": {},
            "evidence": {},
        }


def test_a_partition_without_its_shift_is_pending() -> None:
    memory = new_memory()
    append_all(memory, [behavior(second) for second in range(4)])
    learner = EchoLearner()
    learn_all(memory, learner)
    with memory.writing() as connection:
        connection.execute(schema.texts.delete().where(schema.texts.c.stage == "shift"))
    with memory.reading() as connection:
        assert memory_status(connection)["pending_partitions"] == 1


def test_a_cache_and_a_partition_are_found_without_reading_all_behaviors_of_their_users() -> None:
    memory, plans = new_memory(), []
    with memory.reading() as connection:

        @sa.event.listens_for(connection, "before_cursor_execute")
        def explain(_connection, cursor, statement, parameters, _context, _is_many) -> None:  # type: ignore[no-untyped-def]
            plans.append(" ".join(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)))

        found = cached_rows(connection, [1, 2])
        sealed_behaviors(connection, [(1, 0), (2, 5)])
        on = (schema.behaviors.c.user_key, schema.behaviors.c.behavior_id)
        by_pairs = sa.select(*on).select_from(join_pairs(schema.behaviors, on=on))
        connection.execute(by_pairs, pair_parameters([(1, "a"), (2, "b")]))
        sealed_partitions(connection, [(1, 0), (2, 5)], stage="summary")
        newest_texts(connection, [(1, 0), (2, 5)], stage="summary")
        user_keys(connection, ["ann", "bob"])
        lock(connection, [1, 2])
        rows = SequenceRows(connection, length=3)
        rows.behavior_rows([1, 2])
    assert len(found) == 0
    cached, sealed, by_id, partition, text, user_id, locked, shown, recent, *_ = plans
    assert "behaviors_cached (user_key=?)" in cached
    assert "sqlite_autoindex_partitions_1 (user_key=? AND partition_index=?)" in sealed
    assert "behaviors_by_time (user_key=? AND event_time>? AND event_time<?)" in sealed
    assert "PRIMARY KEY (user_key=? AND behavior_id=?)" in by_id
    assert "sqlite_autoindex_partitions_1 (user_key=? AND partition_index=?)" in partition
    assert "sqlite_autoindex_texts_1 (user_key=? AND partition_index=? AND stage=?)" in partition
    assert "sqlite_autoindex_texts_1 (user_key=? AND partition_index=? AND stage=?)" in text
    assert "SEARCH users USING COVERING INDEX sqlite_autoindex_users_1 (user_id=?)" in user_id
    assert "SEARCH users USING INTEGER PRIMARY KEY (rowid=?)" in locked
    assert "SEARCH users USING INTEGER PRIMARY KEY (rowid=?)" in shown
    assert "behaviors_by_time (user_key=? AND event_time>?)" in recent
    assert "TEMP B-TREE" not in recent


@pytest.mark.parametrize("style", ["qmark", "named"])
def test_many_rows_are_written_alike_whether_the_driver_counts_or_names_parameters(style: str) -> None:
    engine = sa.create_engine("sqlite://", paramstyle=style)
    with engine.begin() as connection:
        schema.settings.create(connection)
        execute_many(connection, schema.settings.insert(), {"value": ["1", "2"], "name": ["a", "b"]})
        change = schema.settings.update().where(schema.settings.c.name == sa.bindparam("of"))
        execute_many(connection, change.values(value=sa.bindparam("to")), {"to": ["3"], "of": ["b"]})
        assert connection.execute(sa.select(schema.settings)).all() == [("a", "1"), ("b", "3")]


def test_a_failed_append_names_no_user_that_a_later_one_would_miss() -> None:
    memory = new_memory()
    with pytest.raises(sa.exc.IntegrityError):
        memory.append(table_of([behavior(1, name="x"), behavior(2, name="x")]), condition=TWO)
    assert everything(memory)["users"] == []
    append_all(memory, [behavior(1, name="x")])
    assert contents(memory).caches == {"ann": ("x",)}
