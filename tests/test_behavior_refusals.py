"""What `check_behaviors` refuses, and what its one line says."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from liber_feast.behavior import BEHAVIOR_ID, EVENT_TIME, FUTURE_TOLERANCE, ITEM, RATING, REQUIRED, TIMESTAMP, USER
from liber_feast.errors import InvalidBehaviors, LiberError
from tests.test_behavior import NOW, SECONDS_2024, behaviors, check


def refused(table: pa.Table, **changes: Any) -> InvalidBehaviors:
    with pytest.raises(InvalidBehaviors) as caught:
        check(table, **changes)
    return caught.value


@pytest.mark.parametrize("name", [USER, ITEM, BEHAVIOR_ID])
@pytest.mark.parametrize(
    "values",
    [
        pa.array([1.0, 2.0, 3.0]),
        pa.array([b"a", b"b", b"c"]),
        pa.array([True, False, True]),
        pa.array([1, 2, 3], pa.uint64()),
        pa.array([["a"], ["b"], ["c"]]),
        pa.array([1, 2, 3], TIMESTAMP),
    ],
    ids=["double", "binary", "bool", "uint64", "list", "timestamp"],
)
def test_ids_of_another_type_are_refused(name: str, values: pa.Array) -> None:
    error = refused(behaviors(**{name: values}))
    assert error.column == name
    assert f"column {name!r} has type {values.type}; ids are strings or 64-bit integers" in error.message


@pytest.mark.parametrize("name", [USER, ITEM, BEHAVIOR_ID])
def test_an_empty_id_is_refused(name: str) -> None:
    error = refused(behaviors(**{name: pa.array(["a", "", ""])}))
    assert (error.column, error.row_count) == (name, 2)
    assert "an empty id in 2 rows, first '' in row 1" in error.message


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_column_is_named_beside_those_found(name: str) -> None:
    error = refused(behaviors().drop_columns(name), source="ratings.csv")
    assert error.column == name
    assert error.message.startswith(f"ratings.csv: column {name!r} is missing; found ")


def test_a_table_without_columns_misses_the_first_one() -> None:
    assert "column 'user_id' is missing; found no columns" in refused(pa.table({})).message


@pytest.mark.parametrize("name", [*REQUIRED, BEHAVIOR_ID])
def test_a_column_that_is_there_twice_is_refused(name: str) -> None:
    table = behaviors(behavior_id=pa.array(["a", "b", "c"]))
    error = refused(table.append_column(name, table[name]))
    assert error.column == name
    assert "is there 2 times" in error.message


@pytest.mark.parametrize("name", [*REQUIRED, BEHAVIOR_ID])
def test_a_null_is_refused_with_its_column_and_row(name: str) -> None:
    table = behaviors(behavior_id=pa.array(["a", "b", "c"]))
    values = table[name].to_pylist()
    values[1] = None
    error = refused(table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type)))
    assert (error.column, error.row_count) == (name, 1)
    assert f"column {name!r} is null in 1 rows, first in row 1" in error.message


def test_a_null_among_the_values_of_a_dictionary_is_refused() -> None:
    users = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["ann", None]))
    error = refused(behaviors(user_id=users))
    assert (error.column, error.row_count) == (USER, 1)


def test_a_column_of_nothing_but_nulls_is_refused() -> None:
    assert refused(behaviors(item_id=pa.nulls(3))).row_count == 3


@pytest.mark.parametrize("values", [["4", "4", "4"], [True, True, True], [[4.0]] * 3], ids=["text", "bool", "list"])
def test_ratings_that_are_no_numbers_are_refused(values: list[Any]) -> None:
    error = refused(behaviors(rating=pa.array(values)))
    assert error.column == RATING
    assert "ratings are numbers" in error.message


@pytest.mark.parametrize("rating", [0.0, 0.499, 5.001, -1.0, float("nan"), float("inf"), float("-inf"), 2.0**60])
def test_a_rating_outside_the_scale_is_refused(rating: float) -> None:
    error = refused(behaviors(rating=pa.array([4.0, rating, 4.0])))
    assert (error.column, error.row_count) == (RATING, 1)
    assert f"outside the scale 0.5 to 5 in 1 rows, first '{rating}' in row 1" in error.message


def test_an_integer_rating_too_large_for_a_double_is_outside_the_scale() -> None:
    assert refused(behaviors(rating=pa.array([1, 2, 2**60 + 1]))).column == RATING


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["2024-01-01"] * 3),
        pa.array([SECONDS_2024] * 3),
        pa.array([float(SECONDS_2024)] * 3),
        pa.array([19_000] * 3, pa.date32()),
    ],
    ids=["text", "unix seconds", "double", "date"],
)
def test_times_that_are_no_timestamps_are_refused(values: pa.Array) -> None:
    error = refused(behaviors(event_timestamp=values))
    assert error.column == EVENT_TIME
    assert f"has type {values.type}; it must be a timestamp" in error.message


def test_a_time_within_the_tolerance_is_taken_and_one_past_it_is_refused() -> None:
    latest = NOW + FUTURE_TOLERANCE
    times = [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC), latest]
    assert check(behaviors(event_timestamp=pa.array(times, TIMESTAMP))).table.num_rows == 3
    times[2] += timedelta(microseconds=1)
    error = refused(behaviors(event_timestamp=pa.array(times, TIMESTAMP)))
    assert (error.column, error.row_count) == (EVENT_TIME, 1)
    assert "a time in the future in 1 rows, first '2024-05-02T00:00:00.000001' in row 2" in error.message


@pytest.mark.parametrize(
    ("count", "unit", "what"),
    [
        (SECONDS_2024 * 10**3, "s", "a time in the future in 3 rows, first '55969-"),
        (SECONDS_2024 * 10**6, "s", "times outside the range of microseconds"),
        (-(2**62), "us", "a time before 1678 in 3 rows"),
    ],
    ids=["milliseconds as seconds", "microseconds as seconds", "before the calendar"],
)
def test_a_time_that_a_wrong_unit_made_absurd_is_refused(count: int, unit: str, what: str) -> None:
    error = refused(behaviors(event_timestamp=pa.array([count] * 3, pa.timestamp(unit))))
    assert error.column == EVENT_TIME
    assert what in error.message


def test_a_refusal_is_one_line_from_the_source_it_names() -> None:
    error = refused(behaviors(rating=pa.array([9.0, 9.0, 9.0])), source="data/behaviors")
    assert isinstance(error, LiberError)
    assert isinstance(error, ValueError)
    assert error.message.startswith("data/behaviors: column 'rating' ")
    assert "\n" not in error.message


def test_a_bad_row_refuses_the_whole_table_and_leaves_it_as_it_was() -> None:
    table = behaviors(rating=pa.array([4.0, 9.0, 4.0])).take([2, 1, 0])
    copy = pa.Table.from_pylist(table.to_pylist(), table.schema)
    refused(table)
    assert table.equals(copy)
