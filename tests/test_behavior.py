import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.behavior import (
    BEHAVIOR_ID,
    EVENT_TIME,
    FUTURE_TOLERANCE,
    ITEM,
    RATING,
    REQUIRED,
    TIMESTAMP,
    USER,
    Behavior,
    CheckedBehaviors,
    RatingScale,
    behavior_ids,
    canonical_id_type,
    canonical_times,
    check_behaviors,
    microseconds,
)

NOW = datetime(2024, 5, 1, tzinfo=UTC)
CANONICAL = {ITEM, RATING, EVENT_TIME, BEHAVIOR_ID, USER}
SECONDS_2024 = 1_704_067_200


def behaviors(**columns: pa.Array) -> pa.Table:
    """Three sound rows in order, with some columns replaced."""
    sound = {
        USER: pa.array(["ann", "bob", "ann"]),
        ITEM: pa.array(["i1", "i1", "i2"]),
        RATING: pa.array([4.0, 0.5, 5.0]),
        EVENT_TIME: pa.array([1_000_000, 2_000_000, 3_000_000], TIMESTAMP),
    }
    return pa.table(sound | columns)


def check(table: pa.Table, **changes: Any) -> CheckedBehaviors:
    return check_behaviors(table, **({"scale": RatingScale(), "now": NOW} | changes))


def test_a_sound_table_keeps_its_rows_in_the_canonical_types() -> None:
    checked = check(behaviors())
    assert checked.table.schema == pa.schema(
        {USER: pa.string(), ITEM: pa.string(), RATING: pa.float64(), EVENT_TIME: TIMESTAMP, BEHAVIOR_ID: pa.string()}
    )
    assert checked.table.select(REQUIRED).equals(behaviors())
    assert (checked.duplicate_count, checked.was_sorted) == (0, True)


def test_columns_that_are_no_part_of_a_behavior_are_left_out() -> None:
    assert set(check(behaviors(review=pa.array(["a", "b", "c"]))).table.column_names) == CANONICAL


def test_the_columns_may_come_in_any_order() -> None:
    assert check(behaviors().select(REQUIRED[::-1])).table.equals(check(behaviors()).table)


def test_a_table_in_many_chunks_equals_one_in_a_single_chunk() -> None:
    table = behaviors()
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)])
    assert check(chunked).table.equals(check(table).table)


def test_unsorted_rows_are_sorted_and_said_to_have_been_unsorted() -> None:
    checked = check(behaviors().take([2, 0, 1]))
    assert checked.table.equals(check(behaviors()).table)
    assert not checked.was_sorted


def test_rows_of_one_time_are_ordered_by_behavior_id() -> None:
    times = pa.array([5, 5, 5], TIMESTAMP)
    checked = check(behaviors(event_timestamp=times, behavior_id=pa.array(["c", "a", "b"])))
    assert checked.table[BEHAVIOR_ID].to_pylist() == ["a", "b", "c"]


# Duplicates


def test_a_row_with_the_user_item_and_time_of_another_is_a_duplicate() -> None:
    table = behaviors()
    checked = check(pa.concat_tables([table, table.slice(1)]))
    assert checked.table.equals(check(table).table)
    assert checked.duplicate_count == 2


def test_a_behavior_id_is_a_duplicate_only_within_its_user() -> None:
    checked = check(behaviors(behavior_id=pa.array(["x", "x", "x"])))
    assert checked.table[USER].to_pylist() == ["ann", "bob"]
    assert checked.duplicate_count == 1


def test_of_two_rows_with_one_behavior_id_the_earlier_stays() -> None:
    checked = check(behaviors(behavior_id=pa.array(["x", "y", "x"])).take([2, 1, 0]))
    assert checked.table[RATING].to_pylist() == [4.0, 0.5]


def test_equal_rows_with_their_own_behavior_ids_are_two_behaviors() -> None:
    table = pa.concat_tables([behaviors().slice(0, 1)] * 2).append_column(BEHAVIOR_ID, pa.array(["first", "second"]))
    assert check(table).table.num_rows == 2


# Ids


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()], ids=str
)
def test_integer_ids_become_int64(kind: pa.DataType) -> None:
    checked = check(behaviors(user_id=pa.array([1, 2, 1], kind), item_id=pa.array([7, 7, 8], kind)))
    assert checked.table.schema.field(USER).type == checked.table.schema.field(ITEM).type == pa.int64()
    assert checked.table[USER].to_pylist() == [1, 2, 1]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_text_ids_become_strings(kind: pa.DataType) -> None:
    checked = check(behaviors(user_id=pa.array(["ann", "bob", "ann"]).cast(kind)))
    assert checked.table.equals(check(behaviors()).table)


def test_users_may_be_strings_and_items_integers() -> None:
    table = check(behaviors(item_id=pa.array([1, 1, 2]))).table
    assert (table[USER].type, table[ITEM].type) == (pa.string(), pa.int64())


def test_ids_of_any_script_come_through_unchanged() -> None:
    ids = ["Zoë", "用户 1", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}"]
    checked = check(behaviors(user_id=pa.array(ids), item_id=pa.array(ids)))
    assert checked.table[USER].to_pylist() == checked.table[ITEM].to_pylist() == ids


def test_integer_behavior_ids_are_kept_as_text() -> None:
    assert check(behaviors(behavior_id=pa.array([10, 11, 12]))).table[BEHAVIOR_ID].to_pylist() == ["10", "11", "12"]


@pytest.mark.parametrize(
    ("kind", "canonical"),
    [
        (pa.string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.dictionary(pa.int8(), pa.int32()), pa.int64()),
        (pa.int16(), pa.int64()),
        (pa.uint64(), None),
        (pa.float64(), None),
        (pa.null(), None),
    ],
    ids=str,
)
def test_ids_are_kept_as_strings_or_int64(kind: pa.DataType, canonical: pa.DataType | None) -> None:
    assert canonical_id_type(kind) == canonical


# Ratings


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2, 3], pa.int8()),
        pa.array([1.0, 2.0, 3.0], pa.float32()),
        pa.array([1, 2, 3]).cast(pa.decimal128(21, 2)),
    ],
    ids=["int8", "float", "decimal"],
)
def test_ratings_of_any_number_type_become_doubles(values: pa.Array) -> None:
    ratings = check(behaviors(rating=values)).table[RATING]
    assert ratings.type == pa.float64()
    assert ratings.to_pylist() == [1.0, 2.0, 3.0]


def test_both_ends_of_the_scale_are_inside_it() -> None:
    scale = RatingScale(low=-10, high=10)
    assert check(behaviors(rating=pa.array([-10, 0, 10])), scale=scale).table.num_rows == 3


# Times


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("zone", [None, "UTC", "+05:30", "America/New_York"])
def test_times_of_any_unit_and_zone_become_microseconds_utc(unit: str, per_second: int, zone: str | None) -> None:
    times = pa.array([(SECONDS_2024 + second) * per_second for second in range(3)], pa.timestamp(unit, zone))
    checked = check(behaviors(event_timestamp=times))
    first = datetime(2024, 1, 1, tzinfo=UTC)
    assert checked.table[EVENT_TIME].type == TIMESTAMP
    assert checked.table[EVENT_TIME].to_pylist() == [first + timedelta(seconds=second) for second in range(3)]


def test_nanoseconds_are_cut_to_microseconds() -> None:
    times = pa.chunked_array([pa.array([1_999], pa.timestamp("ns"))])
    assert canonical_times(times).cast(pa.int64()).to_pylist() == [1]


def test_the_clock_may_be_in_any_zone() -> None:
    ahead = NOW.astimezone(timezone(timedelta(hours=14)))
    times = pa.array([NOW + FUTURE_TOLERANCE] * 3, TIMESTAMP)
    assert check(behaviors(event_timestamp=times), now=ahead).table.num_rows == 3


def test_times_before_1970_are_times() -> None:
    times = pa.array([-3, -2, -1], pa.timestamp("s"))
    assert check(behaviors(event_timestamp=times)).table[EVENT_TIME].to_pylist()[2] == datetime(
        1969, 12, 31, 23, 59, 59, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(1970, 1, 1), 0),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 253_402_300_799_999_999),
    ],
    ids=["naive is UTC", "another zone", "before 1970", "the last of all"],
)
def test_a_moment_is_counted_in_microseconds_exactly(moment: datetime, expected: int) -> None:
    assert microseconds(moment) == expected


# Empty tables


@pytest.mark.parametrize(
    "kind",
    [pa.null(), pa.string(), pa.int32(), pa.float64(), pa.list_(pa.int64()), pa.timestamp("ns")],
    ids=str,
)
@pytest.mark.parametrize("chunks", [0, 1], ids=["no chunk", "an empty chunk"])
def test_an_empty_table_is_canonical_whatever_its_types(kind: pa.DataType, chunks: int) -> None:
    column = pa.chunked_array([pa.array([], kind)] * chunks, kind)
    checked = check(pa.table(dict.fromkeys(REQUIRED, column)))
    assert checked.table.num_rows == 0
    assert checked.table.schema.field(RATING).type == pa.float64()
    assert checked.table.schema.field(EVENT_TIME).type == TIMESTAMP
    assert {checked.table.schema.field(name).type for name in (USER, ITEM)} <= {pa.string(), pa.int64()}
    assert (checked.duplicate_count, checked.was_sorted) == (0, True)


def test_an_empty_table_keeps_integer_ids() -> None:
    empty = behaviors(user_id=pa.array([1, 2, 3])).slice(0, 0)
    assert check(empty).table.schema.field(USER).type == pa.int64()


# Behavior ids


def test_a_made_behavior_id_is_sixteen_hex_digits_and_the_same_in_every_run() -> None:
    ids = behavior_ids(pa.array(["ann"]), pa.array(["i1"]), pa.array([1_000_000], TIMESTAMP))
    assert ids.to_pylist() == ["202fcdb000eb819d"]


def test_a_made_behavior_id_depends_on_user_item_and_time() -> None:
    users, items = pa.array(["a", "b", "a", "a"]), pa.array(["i", "i", "j", "i"])
    ids = behavior_ids(users, items, pa.array([1, 1, 1, 2], TIMESTAMP))
    assert len(set(ids.to_pylist())) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", made) for made in ids.to_pylist())


def test_a_made_behavior_id_is_the_same_for_every_unit_of_time() -> None:
    users, items = pa.array(["a"]), pa.array(["i"])
    units = [pa.array([SECONDS_2024], pa.timestamp("s", "UTC")), pa.array([SECONDS_2024 * 10**6], TIMESTAMP)]
    seconds, micros = (behavior_ids(users, items, times) for times in units)
    assert seconds.equals(micros)


def test_a_behavior_is_a_value() -> None:
    first, second = (Behavior(user_id=1, item_id="i", rating=4.0, event_time=NOW, behavior_id="b") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


# Properties

IDS = {
    "strings": st.text(st.characters(codec="utf-8"), min_size=1, max_size=3),
    "integers": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Tables of few users, items and times, so that ties and duplicates are common."""
    ids = IDS[draw(st.sampled_from(sorted(IDS)))]
    users = draw(st.lists(ids, min_size=1, max_size=3))
    kind = pa.string() if isinstance(users[0], str) else pa.int64()
    row = st.tuples(
        st.sampled_from(users),
        st.sampled_from(users),
        st.floats(0.5, 5.0),
        st.integers(0, 4) | st.integers(-(2**50), microseconds(NOW)),
        st.sampled_from(["a", "b", "é", "\U0001f600"]),
    )
    columns = list(zip(*draw(st.lists(row, max_size=12)), strict=True)) or [()] * 5
    kinds = {USER: kind, ITEM: kind, RATING: pa.float64(), EVENT_TIME: TIMESTAMP, BEHAVIOR_ID: pa.string()}
    arrays = {name: pa.array(values, kinds[name]) for name, values in zip(kinds, columns, strict=True)}
    if draw(st.booleans()):
        del arrays[BEHAVIOR_ID]
    return pa.table(arrays)


@given(tables())
def test_a_canonical_table_is_its_own_canonical_form(table: pa.Table) -> None:
    once = check(table)
    twice = check(once.table)
    assert twice.table.equals(once.table)
    assert (twice.duplicate_count, twice.was_sorted) == (0, True)


@given(tables())
def test_a_canonical_table_is_sorted_by_time_then_behavior_id(table: pa.Table) -> None:
    checked = check(table).table
    order = list(zip(checked[EVENT_TIME].to_pylist(), checked[BEHAVIOR_ID].to_pylist(), strict=True))
    assert order == sorted(order)


@given(tables())
def test_no_row_is_lost_but_the_counted_duplicates(table: pa.Table) -> None:
    checked = check(table)
    rows = checked.table.to_pylist()
    assert len(rows) + checked.duplicate_count == table.num_rows
    assert len({(row[USER], row[BEHAVIOR_ID]) for row in rows}) == len(rows)
    if BEHAVIOR_ID not in table.column_names:
        given_ids = behavior_ids(*(table[name].combine_chunks() for name in (USER, ITEM, EVENT_TIME)))
        table = table.append_column(BEHAVIOR_ID, given_ids)
    assert {(row[USER], row[BEHAVIOR_ID]) for row in rows} == {
        (row[USER], row[BEHAVIOR_ID]) for row in table.to_pylist()
    }
    assert all(row in table.to_pylist() for row in rows)


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_the_source_changes_no_behavior(table: pa.Table, random: Any) -> None:
    order = list(range(table.num_rows))
    random.shuffle(order)
    shuffled, straight = check(table.take(pa.array(order, pa.int64()))), check(table)
    keys = [(row[USER], row[BEHAVIOR_ID], row[EVENT_TIME]) for row in straight.table.to_pylist()]
    assert sorted(keys, key=repr) == sorted(
        ((row[USER], row[BEHAVIOR_ID], row[EVENT_TIME]) for row in shuffled.table.to_pylist()), key=repr
    )
    assert shuffled.duplicate_count == straight.duplicate_count
