"""Appending to the memory: any feed of a stream is one feed, and nothing is lost, doubled or moved once sealed."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.behavior import Behavior, RatingScale, check_behaviors, microseconds
from liber_feast.condition import Condition, CountCondition, DriftCondition, TimeCondition
from liber_feast.errors import ConfigError, InvalidBehaviors
from liber_feast.memory import Appended, Memory
from liber_feast.memory.append import encoded_before
from liber_feast.memory.status import memory_status
from liber_feast.partition import ItemVectors, order, partition_hash, seal, seal_time
from tests.examples import at_most
from tests.memory_parts import (
    SECOND_US,
    START,
    START_US,
    TWO,
    Contents,
    Sealed,
    append_all,
    behavior,
    contents,
    everything,
    new_memory,
    table_of,
)
from tests.test_partition import VECTORS, conditions, streams

USERS = ("ann", "bob", "cid")
EXAMPLES = at_most(60)


def vectors_of(item_ids: Sequence[str]) -> ItemVectors:
    """Return the vectors of the items that have one, as a title encoder would: only those asked for."""
    known = [item for item in item_ids if item in VECTORS.rows]
    return ItemVectors(
        rows={item: row for row, item in enumerate(known)}, table=VECTORS.table[[VECTORS.rows[item] for item in known]]
    )


@st.composite
def feeds(draw: st.DrawFn) -> list[Behavior]:
    """The streams of a few users, merged in the order of time."""
    merged = [
        Behavior(user_id=user, item_id=b.item_id, rating=b.rating, event_time=b.event_time, behavior_id=b.behavior_id)
        for user in USERS[: draw(st.integers(1, 3))]
        for b in draw(streams())
    ]
    return sorted(merged, key=order)


def pieces(stream: list[Behavior], cuts: list[int]) -> list[list[Behavior]]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    return [stream[left:right] for left, right in zip(edges[:-1], edges[1:], strict=True)]


def feed(memory: Memory, parts: Sequence[Sequence[Behavior]], *, condition: Condition) -> list[Appended]:
    return [memory.append(table_of(part), condition=condition, item_vectors=vectors_of) for part in parts]


def streamed(stream: list[Behavior], *, condition: Condition) -> Contents:
    """Return what the streaming rule makes of the users' streams."""
    partitions, caches = {}, {}
    for user in USERS:
        own = [b for b in stream if b.user_id == user]
        sealed, cache = seal(own, condition=condition, vectors=VECTORS)
        found: list[Sealed] = []
        for partition in sealed:
            times = [microseconds(b.event_time) for b in partition.behaviors]
            found.append(
                Sealed(
                    behavior_ids=tuple(b.behavior_id for b in partition.behaviors),
                    partition_hash=partition_hash(partition.behaviors),
                    first_time=min(times),
                    last_time=max(times),
                    seal_time=seal_time(max(times), previous_us=found[-1].seal_time if found else None),
                    condition=condition.describe(),
                )
            )
        partitions |= {user: tuple(found)} if found else {}
        caches |= {user: tuple(b.behavior_id for b in cache)} if cache else {}
    return Contents(partitions=partitions, caches=caches)


@EXAMPLES
@given(feeds(), conditions, st.lists(st.integers(0, 100), max_size=6))
def test_any_split_of_a_stream_into_appends_seals_what_the_streaming_rule_seals(
    stream: list[Behavior], condition: Condition, cuts: list[int]
) -> None:
    memory = new_memory()
    appended = feed(memory, pieces(stream, cuts), condition=condition)
    assert contents(memory) == streamed(stream, condition=condition)
    assert sum(one.behavior_count for one in appended) == len(stream)
    assert not any(one.duplicate_count or one.late_count for one in appended)
    assert sum(one.sealed_count for one in appended) == sum(map(len, contents(memory).partitions.values()))


@EXAMPLES
@given(feeds(), conditions, st.lists(st.integers(0, 100), max_size=4), st.randoms(use_true_random=False))
def test_out_of_order_arrival_loses_nothing_doubles_nothing_and_never_moves_what_is_sealed(
    stream: list[Behavior], condition: Condition, cuts: list[int], random: "st.random.Random"
) -> None:
    arrived = random.sample(stream, len(stream))
    memory = new_memory()
    late_count, before = 0, contents(memory)
    for part in pieces(arrived, cuts):
        late_count += memory.append(table_of(part), condition=condition, item_vectors=vectors_of).late_count
        after = contents(memory)
        for user, sealed in before.partitions.items():
            assert after.partitions[user][: len(sealed)] == sealed
        before = after
    for user in USERS:
        own = [b for b in stream if b.user_id == user]
        assert sorted(before.behavior_ids(user)) == sorted(b.behavior_id for b in own)
        sealed = before.partitions.get(user, ())
        times = [one.seal_time for one in sealed]
        assert times == sorted(set(times))
        assert all(one.seal_time > one.last_time for one in sealed)
        if isinstance(condition, CountCondition):
            assert {len(one.behavior_ids) for one in sealed} <= {condition.size}
            assert len(before.caches.get(user, ())) < condition.size
    with memory.reading() as connection:
        assert memory_status(connection)["late_behaviors"] == late_count


@EXAMPLES
@given(feeds(), conditions, st.lists(st.integers(0, 100), max_size=4))
def test_a_stream_that_comes_again_changes_nothing_and_is_counted(
    stream: list[Behavior], condition: Condition, cuts: list[int]
) -> None:
    memory = new_memory()
    feed(memory, [stream], condition=condition)
    before = contents(memory)
    again = feed(memory, pieces(stream, cuts), condition=condition)
    assert contents(memory) == before
    assert sum(one.duplicate_count for one in again) == len(stream)
    assert not any(one.behavior_count or one.sealed_count or one.late_count for one in again)


def test_a_late_behavior_joins_the_end_of_the_cache_and_is_counted() -> None:
    memory, three = new_memory(), CountCondition(3)
    append_all(memory, [behavior(1), behavior(2), behavior(3), behavior(5)], condition=three)
    late = memory.append(table_of([behavior(2.5, name="late")]), condition=three)
    assert (late.late_count, late.behavior_count, late.sealed_count) == (1, 1, 0)
    assert contents(memory).caches == {"ann": (behavior(5).behavior_id, "late")}
    append_all(memory, [behavior(6)], condition=three)
    second = contents(memory).partitions["ann"][1]
    assert second.behavior_ids == (behavior(5).behavior_id, "late", behavior(6).behavior_id)
    assert (second.first_time, second.seal_time) == (START_US + 2.5 * SECOND_US, START_US + 6 * SECOND_US + 1)


def test_late_behaviors_stand_behind_those_in_time_whatever_their_ids() -> None:
    memory, three = new_memory(), CountCondition(3)
    append_all(memory, [behavior(second) for second in (1, 2, 3)], condition=three)
    append_all(memory, [behavior(5, name="in time 1")], condition=three)
    append_all(memory, [behavior(0.5, name="a late 1")], condition=three)
    append_all(memory, [behavior(5, name="in time 2"), behavior(0.4, name="a late 2")], condition=three)
    found = contents(memory)
    assert found.partitions["ann"][1].behavior_ids == ("in time 1", "in time 2", "a late 1")
    assert found.caches == {"ann": ("a late 2",)}


def test_a_partition_of_late_behaviors_alone_is_sealed_just_after_the_one_before() -> None:
    memory = new_memory()
    append_all(memory, [behavior(10), behavior(11)])
    assert memory.append(table_of([behavior(1), behavior(2)]), condition=TWO).late_count == 2
    first, second = contents(memory).partitions["ann"]
    assert second.last_time == START_US + 2 * SECOND_US
    assert second.seal_time == first.seal_time + 1


def test_a_late_partition_does_not_move_the_place_in_time_back() -> None:
    memory = new_memory()
    append_all(memory, [behavior(10), behavior(11)])
    append_all(memory, [behavior(1), behavior(2)])
    assert memory.append(table_of([behavior(5)]), condition=TWO).late_count == 1


def test_of_two_behaviors_at_the_sealed_time_only_the_one_with_the_lower_id_is_late() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1), behavior(2, name="m")])
    assert memory.append(table_of([behavior(2, name="n")]), condition=TWO).late_count == 0
    assert memory.append(table_of([behavior(2, name="l")]), condition=TWO).late_count == 1


def test_a_behavior_before_the_cache_but_after_the_last_seal_is_in_its_place_and_not_late() -> None:
    memory, three = new_memory(), CountCondition(3)
    append_all(memory, [behavior(3), behavior(4)], condition=three)
    assert memory.append(table_of([behavior(1)]), condition=three).late_count == 0
    (sealed,) = contents(memory).partitions["ann"]
    assert sealed.behavior_ids == tuple(behavior(second).behavior_id for second in (1, 3, 4))


def test_earlier_behaviors_can_push_cached_ones_out_of_the_partition_they_fill() -> None:
    memory, three = new_memory(), CountCondition(3)
    append_all(memory, [behavior(8), behavior(9)], condition=three)
    append_all(memory, [behavior(1), behavior(2)], condition=three)
    (sealed,) = contents(memory).partitions["ann"]
    assert sealed.behavior_ids == tuple(behavior(second).behavior_id for second in (1, 2, 8))
    assert contents(memory).caches == {"ann": (behavior(9).behavior_id,)}


@pytest.mark.parametrize("cached", [True, False], ids=["in the cache", "in a partition"])
def test_a_known_id_is_a_duplicate_even_with_another_rating_item_or_time(cached: bool) -> None:
    memory = new_memory()
    append_all(memory, [behavior(1, name="x")] if cached else [behavior(1, name="x"), behavior(2)])
    before = contents(memory)
    changed = behavior(7, name="x", item="other", rating=1.0)
    appended = memory.append(table_of([changed]), condition=TWO)
    assert (appended.duplicate_count, appended.behavior_count, appended.late_count) == (1, 0, 0)
    assert contents(memory) == before


def test_the_users_of_an_append_are_those_who_sent_anything_known_or_new() -> None:
    memory = new_memory()
    first = memory.append(table_of([behavior(1), behavior(1, user="bob")]), condition=TWO)
    again = memory.append(table_of([behavior(1, user="bob"), behavior(1, user="cid")]), condition=TWO)
    ann, bob = first.user_keys
    assert again.user_keys == (bob, bob + 1)
    assert ann < bob


def test_a_duplicate_beside_new_behaviors_is_left_out_and_the_new_ones_are_taken() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1)])
    appended = memory.append(table_of([behavior(1), behavior(2), behavior(3, user="bob")]), condition=TWO)
    assert (appended.duplicate_count, appended.behavior_count, appended.sealed_count) == (1, 2, 1)
    assert len(appended.user_keys) == 2


def test_the_same_id_of_two_users_is_two_behaviors() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1, name="x"), behavior(1, name="x", user="bob")])
    assert contents(memory).caches == {"ann": ("x",), "bob": ("x",)}
    again = memory.append(
        table_of([behavior(1, name="x", user="cid"), behavior(1, name="x", user="bob")]), condition=TWO
    )
    assert (again.behavior_count, again.duplicate_count) == (1, 1)


def test_without_ids_of_the_source_a_behavior_sent_again_with_another_rating_is_a_duplicate() -> None:
    def checked(*ratings: float) -> pa.Table:
        rows = table_of([behavior(1, rating=rating) for rating in ratings]).drop_columns(["behavior_id"])
        return check_behaviors(rows, scale=RatingScale(), now=datetime.now(UTC)).table

    memory = new_memory()
    assert memory.append(checked(4.0, 4.0), condition=TWO).behavior_count == 1
    before = contents(memory)
    assert memory.append(checked(1.0), condition=TWO).duplicate_count == 1
    assert contents(memory) == before


def test_integer_ids_are_taken_and_kept_apart_from_nothing() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1, user=7, item=70), behavior(2, user=7, item=71), behavior(3, user=8, item=70)])
    assert set(contents(memory).partitions) == {"7"}
    assert set(contents(memory).caches) == {"8"}
    assert (memory.setting("user_id_type"), memory.setting("item_id_type")) == ("int64", "int64")
    assert memory.append(table_of([behavior(1, user=7, item=70)]), condition=TWO).duplicate_count == 1


@pytest.mark.parametrize(
    ("other", "column"),
    [(behavior(9, user=1, item="a"), "user_id"), (behavior(9, user="new", item=1), "item_id")],
    ids=["users", "items"],
)
def test_ids_of_another_type_are_refused_and_the_memory_is_unharmed(other: Behavior, column: str) -> None:
    memory = new_memory()
    append_all(memory, [behavior(1), behavior(2), behavior(3)])
    before = everything(memory)
    with pytest.raises(InvalidBehaviors, match=f"{column}.*int64.*string ids") as caught:
        memory.append(table_of([other]), condition=TWO)
    assert caught.value.column == column
    assert "\n" not in caught.value.message
    assert everything(memory) == before


def test_an_empty_table_changes_nothing_and_says_nothing_of_the_type_of_ids() -> None:
    memory = new_memory()
    before = everything(memory)
    appended = memory.append(table_of([]), condition=TWO)
    assert appended == Appended()
    assert everything(memory) == before
    append_all(memory, [behavior(1, user=7, item=70)])
    assert memory.append(table_of([]), condition=TWO).behavior_count == 0


def test_an_append_that_fails_half_way_leaves_nothing_behind() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1)])
    before = everything(memory)
    with pytest.raises(ConfigError, match="item vectors"):
        append_all(
            memory, [behavior(2, user="bob"), behavior(3)], condition=DriftCondition(threshold=1, minimum=1, maximum=2)
        )
    assert everything(memory) == before


def test_another_condition_applies_to_what_is_not_yet_sealed() -> None:
    memory = new_memory()
    append_all(memory, [behavior(1), behavior(2), behavior(3)])
    append_all(memory, [behavior(4)], condition=CountCondition(3))
    append_all(memory, [behavior(5)], condition=CountCondition(3))
    assert [one.condition for one in contents(memory).partitions["ann"]] == ["count(2)", "count(3)"]


def test_many_users_and_ids_go_through_in_one_append() -> None:
    stream = [behavior(second, user=f"user {user}", name=f"{second}") for user in range(1_000) for second in range(3)]
    memory = new_memory()
    assert memory.append(table_of(stream), condition=TWO).sealed_count == 1_000
    assert memory.append(table_of(stream), condition=TWO).duplicate_count == 3_000
    later = [behavior(second, user=f"user {user}", name=f"{second}") for user in range(1_000) for second in (0.5, 4)]
    appended = memory.append(table_of(later), condition=TWO)
    assert (appended.late_count, appended.sealed_count) == (1_000, 1_000)
    assert set(contents(memory).caches.values()) == {("4",)}


IDLE = TimeCondition(idle=timedelta(seconds=10))


def test_idle_caches_are_sealed_when_asked_and_no_others() -> None:
    memory = new_memory()
    append_all(memory, [behavior(0), behavior(5), behavior(8, user="bob")], condition=IDLE)
    assert memory.seal_idle(START + timedelta(seconds=14.9), condition=IDLE) == 0
    assert memory.seal_idle(START + timedelta(seconds=15), condition=IDLE) == 1
    found = contents(memory)
    assert found.partitions["ann"][0].seal_time == START_US + 5 * SECOND_US + 1
    assert set(found.partitions) == {"ann"}
    assert set(found.caches) == {"bob"}
    assert memory.seal_idle(START + timedelta(seconds=15), condition=IDLE) == 0


@EXAMPLES
@given(feeds(), st.integers(1, 8), st.lists(st.integers(0, 100), max_size=6))
def test_sealing_idle_caches_between_appends_changes_no_partition(
    stream: list[Behavior], idle: int, cuts: list[int]
) -> None:
    condition = TimeCondition(idle=timedelta(seconds=idle))
    memory = new_memory()
    for part in pieces(stream, cuts):
        if part:
            memory.seal_idle(part[0].event_time, condition=condition)
        feed(memory, [part], condition=condition)
    end = max((b.event_time for b in stream), default=START)
    memory.seal_idle(end, condition=condition)
    whole = new_memory()
    feed(whole, [stream], condition=condition)
    whole.seal_idle(end, condition=condition)
    assert contents(memory) == contents(whole)


@pytest.mark.parametrize("condition", [TWO, TimeCondition(span=timedelta(1))], ids=["count", "span alone"])
def test_without_an_idle_time_no_cache_is_ever_idle(condition: Condition) -> None:
    memory = new_memory()
    append_all(memory, [behavior(0)], condition=condition)
    assert memory.seal_idle(START + timedelta(days=9_999), condition=condition) == 0
    assert contents(memory).caches == {"ann": (behavior(0).behavior_id,)}


def test_the_vectors_of_new_and_cached_items_are_made_once_and_before_the_memory_is_locked(tmp_path: Path) -> None:
    memory, other, asked = new_memory(tmp_path), new_memory(tmp_path), []

    def vectors(item_ids: Sequence[str]) -> ItemVectors:
        other.keep_setting("written", "while items are encoded")  # would wait for the lock
        asked.append(list(item_ids))
        return ItemVectors.of(list(item_ids), vectors=np.eye(len(item_ids), 3))

    rule = DriftCondition(threshold=0.5, minimum=1, maximum=9)
    for item, second in (("a", 1), ("a", 2), ("b", 3)):
        memory.append(table_of([behavior(second, item=item)]), condition=rule, item_vectors=vectors)
    assert asked == [["a"], ["a"], ["a", "b"]]
    assert len(contents(memory).partitions["ann"][0].behavior_ids) == 2


def test_an_item_that_came_in_between_gets_its_vector_after_all() -> None:
    found = encoded_before(vectors_of, ["a"])
    assert found(["a"]) is found([])
    assert set(found(["a", "b"]).rows) == set(vectors_of(["a", "b"]).rows)
