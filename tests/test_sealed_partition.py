"""What a sealed partition is known by: its seal time and the hash of its content."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.behavior import Behavior
from liber_feast.partition import NEVER_SEALED, content_hash, content_hashes, partition_hash, seal_time, seal_times

START = datetime(2020, 1, 1, tzinfo=UTC)


def behavior(second: int, *, name: str = "", item: str = "a", rating: float = 4.0) -> Behavior:
    time = START + timedelta(seconds=second)
    return Behavior(user_id="ann", item_id=item, rating=rating, event_time=time, behavior_id=name or f"{second:09}")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), max_size=30), st.booleans(), st.data())
def test_seal_times_of_a_table_are_those_of_the_partitions_one_by_one(
    rows: list[tuple[int, int]], is_resumed: bool, data: st.DataObject
) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    before = {user: data.draw(st.none() | st.integers(-12, 12)) if is_resumed else None for user, _ in rows}
    expected: list[int] = []
    for user, group in groupby(rows, key=lambda row: row[0]):
        previous = before[user]
        for _, latest in group:
            previous = seal_time(latest, previous_us=previous)
            expected.append(previous)
    sealed = seal_times(
        np.array([latest for _, latest in rows], np.int64),
        user_codes=np.array([user for user, _ in rows], np.int64),
        previous_us=np.array([NEVER_SEALED if before[user] is None else before[user] for user, _ in rows], np.int64)
        if is_resumed
        else None,
    )
    assert sealed.tolist() == expected


def test_a_seal_time_is_after_the_latest_behavior_and_after_the_partition_before() -> None:
    assert seal_time(100, previous_us=None) == 101
    assert seal_time(100, previous_us=50) == 101
    assert seal_time(100, previous_us=101) == 102
    assert seal_time(100, previous_us=900) == 901


def test_partition_hashes_stay_what_stored_results_are_kept_under() -> None:
    stream = [behavior(1, name="x", item="i1", rating=4), behavior(2, name="y", item="i2", rating=0.5)]
    assert partition_hash(stream) == "b398a460b47d686ae1b13ccb30d9051c"


texts = st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(["", "a", "aa", "é", "\U0001f600"])
numbers = st.floats(allow_nan=True) | st.sampled_from([0.0, -0.0, 0.5, 4.0])
moments = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(texts, texts, numbers, moments), max_size=20), st.sets(st.integers(1, 19)), st.booleans())
def test_the_hashes_of_a_table_are_those_of_its_partitions_one_by_one(
    rows: list[tuple[str, str, float, int]], edges: set[int], is_sliced: bool
) -> None:
    starts = [0, *sorted(edge for edge in edges if edge < len(rows))] if rows else []
    stops = [*starts[1:], len(rows)]
    kind = pa.large_string() if is_sliced else pa.string()
    ids, items = (pa.array([None, *(row[place] for row in rows)], kind).slice(1) for place in (0, 1))
    found = content_hashes(
        ids,
        items,
        ratings=np.array([row[2] for row in rows], np.float64),
        times_us=np.array([row[3] for row in rows], np.int64),
        starts=np.array(starts, np.int64),
    )
    assert found == [content_hash(rows[left:right]) for left, right in zip(starts, stops[: len(starts)], strict=True)]


@pytest.mark.parametrize(
    "change",
    [
        {"behavior_id": "other"},
        {"item_id": "other"},
        {"rating": 4.5},
        {"event_time": START + timedelta(microseconds=1)},
    ],
    ids=str,
)
def test_the_partition_hash_depends_on_every_value(change: dict[str, object]) -> None:
    one, two = behavior(0), behavior(5)
    assert partition_hash([replace(one, **change), two]) != partition_hash([one, two])


def test_the_partition_hash_depends_on_the_order_and_on_where_a_value_ends() -> None:
    one, two = behavior(0), behavior(5)
    assert partition_hash([one, two]) != partition_hash([two, one])
    joined = [replace(one, behavior_id="a", item_id="bc"), replace(one, behavior_id="ab", item_id="c")]
    assert partition_hash(joined[:1]) != partition_hash(joined[1:])


def test_the_partition_hash_looks_at_moments_not_at_time_zones() -> None:
    there = replace(behavior(0), event_time=START.astimezone(timezone(timedelta(hours=9))))
    assert partition_hash([there]) == partition_hash([behavior(0)])
