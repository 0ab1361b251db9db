"""What an append says and keeps of users beside their behaviors: counts, numbers, who waits, when a push came."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from liber_feast.behavior import Behavior, RatingScale, check_behaviors
from liber_feast.condition import TimeCondition
from liber_feast.memory import Appended, Memory
from liber_feast.memory.clock import now_us
from liber_feast.memory.schema import partitions, users, waiting
from liber_feast.memory.tombstones import keep_tombstone
from tests.memory_parts import SECOND_US, START, START_US, TWO, append_all, behavior, contents, new_memory, table_of


def rows_of(memory: Memory, table: sa.Table, *names: str) -> list[tuple[object, ...]]:
    """Return columns of a table beside the id of each row's user."""
    query = sa.select(users.c.user_id, *(table.c[name] for name in names))
    if table is not users:
        query = query.join_from(table, users, table.c.user_key == users.c.user_key)
    with memory.reading() as connection:
        return sorted(tuple(row) for row in connection.execute(query.order_by(*query.selected_columns)))


def test_a_user_waits_from_the_first_seal_on_and_is_numbered_anew_by_every_further_one() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1), behavior(2), behavior(1, user="bob")])
    with memory.writing() as connection:
        (since,) = connection.scalars(sa.select(waiting.c.since)).all()
        assert 0 <= now_us(connection) - since < 60 * SECOND_US
        connection.execute(waiting.update().values(since=5, not_before=9, lease_owner="w", claim_count=1))
    append_all(memory, [behavior(3), behavior(4), behavior(5), behavior(6)])
    append_all(memory, [behavior(7), behavior(2, user="bob"), behavior(1, user="cid")])
    every = rows_of(memory, waiting, "number", "since", "not_before", "lease_owner", "claim_count")
    assert every[0] == ("ann", 2, 5, 0, "w", 1)
    assert [row[0] for row in every] == ["ann", "bob"]
    assert every[1][1] == 1


def test_what_a_source_has_twice_counts_as_if_it_had_come_in_two_appends() -> None:
    stream = [behavior(1), behavior(2), behavior(2), behavior(1, user="bob"), behavior(2)]
    at_once, one_by_one = new_memory(), new_memory()
    checked = check_behaviors(table_of(stream), scale=RatingScale(), now=datetime.now(UTC))
    appended = at_once.append(checked.table, condition=TWO, repeated=checked.repeated)
    assert (appended.duplicate_count, appended.behavior_count) == (2, 3)
    for one in stream:
        append_all(one_by_one, [one])
    for memory in (at_once, one_by_one):
        assert rows_of(memory, users, "behavior_count", "duplicate_count") == [("ann", 2, 2), ("bob", 1, 0)]


def test_partitions_keep_when_the_push_came_that_filled_them() -> None:
    memory = new_memory()
    memory.append(table_of([behavior(1), behavior(2), behavior(3)]), condition=TWO, pushed_time=77)
    append_all(memory, [behavior(4)])
    memory.append(table_of([behavior(5), behavior(6), behavior(1, user="bob")]), condition=TWO, pushed_time=78)
    assert rows_of(memory, partitions, "partition_index", "pushed_time") == [
        ("ann", 0, 77),
        ("ann", 1, None),
        ("ann", 2, 78),
    ]


def test_behaviors_later_than_the_clock_are_taken_and_counted() -> None:
    memory = new_memory()
    day = (datetime.now(UTC) - START).total_seconds()
    appended = memory.append(
        table_of([behavior(day - 3600), behavior(day + 3600), behavior(day + 7200, user="bob")]), condition=TWO
    )
    assert (appended.ahead_count, appended.behavior_count, appended.sealed_count) == (2, 3, 1)
    assert rows_of(memory, users, "ahead_count") == [("ann", 1), ("bob", 1)]
    assert memory.append(table_of([behavior(day + 3600)]), condition=TWO).ahead_count == 0, "a duplicate"


@pytest.mark.parametrize(
    ("before", "new", "tied"),
    [
        ([], [behavior(1, name="a"), behavior(1, name="b"), behavior(2)], 1),
        ([], [behavior(1, name="a"), behavior(1, name="b"), behavior(1, name="c")], 2),
        ([behavior(1, name="a")], [behavior(1, name="b")], 1),
        ([behavior(1, name="a")], [behavior(1, name="b"), behavior(1, name="c")], 2),
        ([behavior(1, name="a"), behavior(2)], [behavior(1, name="b"), behavior(1, name="c")], 2),
        ([behavior(1, name="a"), behavior(2)], [behavior(1, name="b")], 1),
        ([behavior(1), behavior(2, name="a")], [behavior(2, name="b")], 1),
        ([behavior(1), behavior(3)], [behavior(2)], 0),
        ([behavior(1, name="a"), behavior(2)], [behavior(1, name="a")], 0),
        ([behavior(1, user="bob")], [behavior(1)], 0),
    ],
    ids=[
        "of one append",
        "three of one append",
        "cached",
        "two beside cached",
        "two beside sealed",
        "sealed",
        "last sealed",
        "between sealed",
        "duplicate",
        "of another user",
    ],
)
def test_new_behaviors_at_the_time_of_another_of_their_user_are_counted(
    before: list[Behavior], new: list[Behavior], tied: int
) -> None:
    memory = new_memory()
    append_all(memory, before)
    assert memory.append(table_of(new), condition=TWO).tied_count == tied


def test_what_was_forgotten_is_counted_and_leaves_no_trace_and_what_is_newer_is_taken() -> None:
    memory = new_memory()
    with memory.writing() as connection:
        keep_tombstone(connection, "ann", now=START_US, until_time=START_US + 2 * SECOND_US)
    gone = memory.append(table_of([behavior(1), behavior(2)]), condition=TWO)
    assert gone == Appended(forgotten_count=2)
    assert not rows_of(memory, users)
    some = memory.append(table_of([behavior(2), behavior(3), behavior(1, user="bob")]), condition=TWO)
    assert (some.forgotten_count, some.behavior_count, len(some.user_keys)) == (1, 2, 2)
    assert contents(memory).caches == {"ann": (behavior(3).behavior_id,), "bob": (behavior(1).behavior_id,)}


def test_users_keep_the_counts_and_a_sequence_number_that_grows_where_something_changed() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1), behavior(2), behavior(1, user="bob")])
    first = dict(rows_of(memory, users, "sequence_number"))
    append_all(memory, [behavior(1), behavior(0.5), behavior(1, user="bob")])
    second = dict(rows_of(memory, users, "sequence_number"))
    assert second["ann"] > first["ann"] > 0
    assert second["bob"] == first["bob"]
    counted = ("behavior_count", "duplicate_count", "late_count", "partition_count")
    assert rows_of(memory, users, *counted) == [("ann", 3, 1, 1, 1), ("bob", 1, 1, 0, 0)]


def test_users_whose_idle_caches_are_sealed_wait_too() -> None:
    memory, idle = new_memory(), TimeCondition(idle=timedelta(seconds=10))
    append_all(memory, [behavior(0), behavior(5), behavior(8, user="bob")], condition=idle)
    assert memory.seal_idle(START + timedelta(seconds=15), condition=idle) == 1
    assert rows_of(memory, waiting, "number", "not_before") == [("ann", 1, 0)]
    assert rows_of(memory, partitions, "pushed_time") == [("ann", None)]
