"""Frames of producers as tables: a column is of one type, its values are what they were, or it is refused by name."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from liber_feast.errors import InvalidBehaviors
from liber_feast.pushed_rows import as_table, check_fit, with_times

TIME = "event_timestamp"
MOMENT = pd.Timestamp("2023-06-01", tz="UTC")


def times_of(texts: Sequence[str | None]) -> list[datetime | None]:
    found: list[datetime | None] = with_times(pa.table({TIME: pa.array(texts, pa.string())}), name=TIME)[
        TIME
    ].to_pylist()
    return found


def table_of(name: str, values: Sequence[Any], *, names: dict[str, str] | None = None) -> pa.Table:
    return as_table(pd.DataFrame({name: pd.Series(list(values), dtype=object)}), names=names or {})


def test_a_text_without_an_offset_is_utc_whatever_stands_before_it() -> None:
    texts = ["2023-06-01T00:00:00+05:30", "2023-06-01T00:00:00", None, "2023-06-01", "2023-06-01T00:00:00Z"]
    midnight = datetime(2023, 6, 1, tzinfo=UTC)
    assert times_of(texts) == [midnight - timedelta(hours=5, minutes=30), midnight, None, midnight, midnight]


@pytest.mark.parametrize("text", ["now", "today", "NaT", "", "1685577600", "06/01/2023", "2023-06-01T23:59:60Z", "\0"])
def test_a_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidBehaviors, match=f"column '{TIME}' has a text that is no ISO 8601 time") as caught:
        times_of(["2023-06-01", text])
    assert caught.value.message.isprintable()


MIXTURES: dict[str, tuple[str, list[Any]]] = {
    "a number among times": (TIME, [MOMENT, 0]),
    "an id among times": (TIME, [MOMENT, uuid.UUID(int=1)]),
    "a date among times": (TIME, [MOMENT, "2023-06-01"]),
    "a bool among ratings": ("rating", [4.0, True]),
    "a short float among integers": ("rating", [4, np.float16(3.5)]),
    "a long float among integers": ("rating", [4, np.longdouble(3.5)]),
    "bytes among ids": ("user_id", ["u1", b"u1"]),
    "a number among ids": ("item_id", ["i1", 1]),
    "half a pair of surrogates": ("item_id", ["i1", "\ud800"]),
    "a time that is too far away": (TIME, [pd.Timestamp(np.datetime64(2**60, "s"))]),
    "a number that is too large": ("rating", [10**400]),
}


@pytest.mark.parametrize(("name", "values"), MIXTURES.values(), ids=MIXTURES)
def test_a_column_that_is_not_of_one_type_is_refused_by_its_name(name: str, values: list[Any]) -> None:
    with pytest.raises(InvalidBehaviors, match=f"column '{name}' cannot be read") as caught:
        table_of(name, values)
    assert caught.value.column == name
    assert caught.value.message.isprintable()


def test_a_column_is_one_of_behaviors_by_the_name_that_the_source_has_for_it() -> None:
    assert table_of("when", [MOMENT, 0])["when"].to_pylist()[1].year == 1970  # Arrow's doing
    with pytest.raises(InvalidBehaviors, match="column 'when' cannot be read"):
        table_of("when", [MOMENT, 0], names={"when": TIME})


def test_objects_of_one_type_are_what_they_were() -> None:
    berlin = timezone(timedelta(hours=2))
    moments = [datetime(2023, 6, 1, tzinfo=berlin), datetime(2023, 6, 1), None, MOMENT]  # noqa: DTZ001
    found = table_of(TIME, moments)[TIME].to_pylist()
    assert found == [MOMENT - timedelta(hours=2), MOMENT, None, MOMENT]
    assert table_of("rating", [4, 3.5, np.float32(0.5), None])["rating"].to_pylist() == [4.0, 3.5, 0.5, None]


def test_rows_that_the_log_cannot_hold_are_refused() -> None:
    rows = pa.table({"rating": [3.5], "note": [["a", "b"]], TIME: pa.array([MOMENT.value], pa.timestamp("ns", "UTC"))})
    check_fit(rows, {"rating": pa.float64(), "note": pa.list_(pa.large_string()), TIME: pa.timestamp("us", "UTC")})
    with pytest.raises(InvalidBehaviors, match=r"'rating' has type double and does not fit int64 of the log"):
        check_fit(rows, {"rating": pa.int64()})
    with pytest.raises(InvalidBehaviors, match=r"'note' has type list<.*> and does not fit string of the log"):
        check_fit(rows, {"note": pa.string()})


def test_a_time_that_pandas_cannot_hold_is_refused_with_those_that_it_can() -> None:
    rows = pd.DataFrame({"event_timestamp": pd.Series([datetime(9998, 1, 1, tzinfo=UTC)], dtype=object)})
    with pytest.raises(InvalidBehaviors, match=r"column 'event_timestamp' cannot be read: .*Push times from 1678 on"):
        as_table(rows, names={})
