"""Tombstones: what was forgotten does not come back with a log that is sent again; what comes later is welcome."""

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.memory import Memory
from liber_feast.memory.append import append
from liber_feast.memory.forgetting import forget_again, forget_user
from liber_feast.memory.schema import tombstones
from liber_feast.memory.tombstones import drop_forgotten, keep_tombstone, tombstones_of
from tests import services
from tests.memory_parts import (
    SECOND_US,
    START_US,
    TWO,
    append_all,
    behavior,
    contents,
    everything,
    learn_all,
    new_memory,
    table_of,
)

memory_url = services.memory_url
postgres_url = services.postgres_url
STREAM = [behavior(second) for second in range(5)]
LATER = [behavior(second, name=f"later{second}") for second in (10**9, 10**9 + 1, 10**9 + 2)]
"""In the year 2051: later than now."""


def forget(memory: Memory, user_id: str = "ann") -> None:
    with memory.writing() as connection:
        forget_user(connection, user_id)


def refused(memory: Memory) -> list[int]:
    with memory.reading() as connection:
        return list(connection.scalars(sa.select(tombstones.c.refused_count)))


def test_a_log_that_is_sent_again_brings_nothing_of_a_forgotten_user_back(memory_url: str, tmp_path: Path) -> None:
    memory = Memory.open(memory_url, base=tmp_path)
    both = [*STREAM, *(behavior(second, user="bob") for second in range(5))]
    append_all(memory, both)
    learn_all(memory)
    before = contents(memory)
    forget(memory)
    appended = memory.append(table_of(both), condition=TWO)
    assert (appended.forgotten_count, appended.behavior_count, appended.duplicate_count) == (5, 0, 5)
    assert refused(memory) == [5]
    after = contents(memory)
    assert set(after.partitions) == {"bob"}
    assert (after.partitions["bob"], after.caches["bob"]) == (before.partitions["bob"], before.caches["bob"])
    memory.close()


def test_a_user_who_comes_back_later_starts_at_partition_0(memory_url: str, tmp_path: Path) -> None:
    memory = Memory.open(memory_url, base=tmp_path)
    append_all(memory, STREAM)
    forget(memory)
    append_all(memory, [*STREAM, *LATER])
    found = contents(memory)
    assert [one.behavior_ids for one in found.partitions["ann"]] == [("later1000000000", "later1000000001")]
    assert found.caches["ann"] == ("later1000000002",)
    memory.close()


def test_the_memory_keeps_no_id_of_who_was_forgotten_and_no_key_is_used_again() -> None:
    memory = new_memory()
    append_all(memory, [behavior(second, user="ann the first") for second in range(4)])
    learn_all(memory)
    forget(memory, "ann the first")
    assert "ann the first" not in repr(everything(memory))
    append_all(memory, [behavior(1, user="bob")])
    with memory.reading() as connection:
        keys = dict(connection.execute(sa.text("SELECT user_id, user_key FROM users")).all())
    assert keys["bob"] == 2


def test_what_calls_have_cost_stays_and_is_nobodys() -> None:
    memory = new_memory()
    columns = "run_id, day, user_id, partition_index, stage, model, prompt_version, input_tokens, output_tokens"
    with memory.writing() as connection:
        for user in ("ann", "bob"):
            values = f"'r', '2026-01-01', '{user}', 0, 'summary', 'm', 'p', 3, 2, 0, 7, 0.5, 1"
            connection.exec_driver_sql(
                f"INSERT INTO calls ({columns}, cached_tokens, nanodollars, seconds, reserved_time) VALUES ({values})"
            )
    forget(memory)
    with memory.reading() as connection:
        assert connection.execute(sa.text("SELECT user_id, nanodollars FROM calls ORDER BY 1")).all() == [
            ("", 7),
            ("bob", 7),
        ]


def test_a_user_whom_the_memory_does_not_know_gets_a_tombstone_too() -> None:
    memory = new_memory()
    forget(memory)
    appended = memory.append(table_of(STREAM), condition=TWO)
    assert (appended.forgotten_count, appended.behavior_count) == (5, 0)
    assert contents(memory).caches == {}


def test_ids_that_are_numbers_are_forgotten_as_well() -> None:
    memory = new_memory()
    stream = [behavior(second, user=user) for second in range(3) for user in (7, 8)]
    append_all(memory, stream)
    forget(memory, "7")
    assert memory.append(table_of(stream), condition=TWO).forgotten_count == 3
    assert set(contents(memory).partitions) == {"8"}


def test_forgetting_twice_refuses_what_was_refused_and_what_came_since() -> None:
    memory = new_memory()
    append_all(memory, STREAM)
    forget(memory)
    append_all(memory, LATER)
    forget(memory)
    assert memory.append(table_of([*STREAM, *LATER]), condition=TWO).forgotten_count == 8
    assert len(refused(memory)) == 1


def test_an_append_that_is_under_way_ends_first_and_is_forgotten_too(postgres_url: str, tmp_path: Path) -> None:
    memory = Memory.open(postgres_url, base=tmp_path)
    forgetting = threading.Thread(target=forget, args=(memory,))
    with memory.writing() as connection:
        append(connection, table_of(STREAM), condition=TWO)
        forgetting.start()
        forgetting.join(timeout=0.3)
        assert forgetting.is_alive()
    forgetting.join()
    assert contents(memory).behavior_ids("ann") == []
    memory.close()


def test_a_copy_of_an_earlier_memory_forgets_whom_the_memory_has_forgotten_since(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [*STREAM, behavior(0, user="bob")])
    raw = memory.engine.raw_connection()
    raw.cursor().execute(f"VACUUM INTO '{tmp_path / 'copy.db'}'")
    raw.close()
    forget(memory)
    forget(memory, "never seen")
    with memory.reading() as connection:
        known = tombstones_of(connection)
    copy = Memory.open("sqlite:///copy.db", base=tmp_path)
    with copy.writing() as connection:
        assert forget_again(connection, known) == 1
        assert forget_again(connection, known) == 0
        assert tombstones_of(connection).keys() == known.keys()
    assert set(contents(copy).caches) == {"bob"}
    assert copy.append(table_of(STREAM), condition=TWO).forgotten_count == 5


@settings(max_examples=25)
@given(
    until=st.dictionaries(st.sampled_from("abc"), st.integers(-1, 6), max_size=3),
    sent=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 6)), max_size=12),
)
def test_exactly_what_is_not_later_than_its_users_tombstone_is_dropped_and_counted(
    until: dict[str, int], sent: list[tuple[str, int]]
) -> None:
    memory = new_memory()
    table = table_of([behavior(second, user=user, name=str(place)) for place, (user, second) in enumerate(sent)])
    with memory.writing() as connection:
        for user, second in until.items():
            keep_tombstone(connection, user, now=0, until_time=START_US + second * SECOND_US)
        kept, count = drop_forgotten(connection, table)
    wanted = sorted(str(place) for place, (user, second) in enumerate(sent) if second > until.get(user, -2))
    assert sorted(kept["behavior_id"].to_pylist()) == wanted
    assert count == len(sent) - len(wanted) == sum(refused(memory))


@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "rows"])
def test_without_tombstones_the_table_itself_is_returned(rows: int) -> None:
    memory = new_memory()
    table = table_of(STREAM[:rows])
    with memory.writing() as connection:
        assert drop_forgotten(connection, table) == (table, 0)
