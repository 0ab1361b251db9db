"""Entity frames: what is one, and what is said of those that cannot be joined."""

from datetime import timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore, FeatureView, Field
from feast.types import Int64

from liber_feast.errors import ConfigError
from liber_feast.offline_entities import entity_rows
from tests.offline_repo import entity_frame, open_store, parquet, rows_of, second, times, user, write_parquet

ARROW = pa.table({"user_id": ["a"], "event_timestamp": times([9])})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with the view `ages`: user a is 30, b is 40."""
    repo = tmp_path_factory.mktemp("frames")
    write_parquet(repo / "ages.parquet", {"user_id": ["a", "b"], "event_timestamp": times([0, 0]), "age": [30, 40]})
    schema = [Field(name="age", dtype=Int64)]
    ages = FeatureView(name="ages", entities=[user], ttl=timedelta(0), schema=schema, source=parquet("ages.parquet"))
    found = open_store(repo)
    found.apply([user, ages])
    return found


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"user_id": ["a"]}), "no column 'event_timestamp'.*Name the time of each row"),
        (pd.DataFrame({"user_id": ["a"], "event_timestamp": ["2024-01-01"]}), "'event_timestamp' has type string"),
        (pd.DataFrame({"user_id": ["a"], "event_timestamp": [17]}), "'event_timestamp' has type int64"),
        (pd.DataFrame({"event_timestamp": [second(1)]}), "'user_id' is missing; feature view 'ages' is joined on it"),
        (entity_frame([7], [1]).astype({"user_id": int}), "'user_id' has type int64, but feature view 'ages'.*string"),
        (entity_frame(["a", 7], [1, 1]), "values of different types.*user_id"),
        (entity_frame(["a"], [1], age=[3]), "feature 'age' has the name of another column"),
        ("SELECT 1", "no SQL engine; pass a pandas DataFrame"),
        (entity_frame(["a"], [1]).assign(x=1, y=2).rename(columns={"y": "x"}), "more than one column is named x"),
        (entity_frame(["a"], [1]).assign(x=1, y=2).rename(columns={"x": 7, "y": "7"}), "than one column is named 7"),
        (ARROW.append_column("user_id", ARROW["user_id"]), "more than one column is named user_id. Rename or drop one"),
        (ARROW.append_column("event_timestamp", times([1])), "more than one column is named event_timestamp"),
        (entity_frame(["a"], [1], x=[1j]), "a type that Arrow lacks.*x"),
        (entity_frame(["a"], [1]).set_index("event_timestamp"), "no column 'event_timestamp'"),
        (pd.DataFrame(), "no column 'event_timestamp'.*no columns"),
        ([1, 2], "it is a list; pass a pandas DataFrame or an Arrow table"),
        ({"user_id": ["a"]}, "it is a dict; pass a pandas DataFrame or an Arrow table"),
    ],
    ids=[
        *("no time", "text time", "integer time", "no key", "key type", "mixed key", "name clash", "query"),
        *("same name", "same name as text", "same key in Arrow", "same time in Arrow"),
        *("foreign type", "time as index", "nothing at all", "list", "mapping"),
    ],
)
def test_bad_frames_end_in_one_line_that_says_what_to_do(store: FeatureStore, frame: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        store.get_historical_features(frame, ["ages:age"]).to_arrow()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("frame", [None, "SELECT 1", [1], pa.array([1])], ids=["none", "query", "list", "array"])
def test_what_is_no_frame_is_named_by_its_type(frame: Any) -> None:
    with pytest.raises(ConfigError, match=f"^entity frame: it is a {type(frame).__name__}; pass a pandas DataFrame"):
        entity_rows(frame)


def test_a_record_batch_is_a_frame_as_its_table_is(store: FeatureStore) -> None:
    batch = ARROW.to_batches()[0]
    assert rows_of(store, batch, ["ages:age"]) == rows_of(store, ARROW, ["ages:age"])
    assert entity_rows(batch).table.num_rows == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([0, 1_672_531_200_000], pa.timestamp("s")), "1672531200000 s since 1970"),
        (pa.array([0, 253_402_300_800_000], pa.timestamp("ms", tz="UTC")), "253402300800000 ms since 1970"),
        (pa.array([None, -62_135_596_800_000_001], pa.timestamp("us")), "-62135596800000001 us since 1970"),
        (pa.array([0, 100_000_000], pa.int32()).cast(pa.date32()), "8640000000000000000 us since 1970"),
    ],
    ids=["unix milliseconds as seconds", "just after 9999", "before year 1", "date"],
)
def test_times_that_no_datetime_can_hold_are_refused(store: FeatureStore, column: pa.Array, value: str) -> None:
    frame = pa.table({"user_id": ["a", "a"], "event_timestamp": column})
    with pytest.raises(ConfigError, match=f"'event_timestamp' has {value}, which is outside the years 1 to 9999"):
        store.get_historical_features(frame, ["ages:age"])


def test_a_date_that_no_time_can_hold_is_refused() -> None:
    dates = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    with pytest.raises(ConfigError, match="^entity frame: column 'event_timestamp' has a date that no time can hold"):
        entity_rows(pa.table({"user_id": ["a"], "event_timestamp": dates}))


@pytest.mark.parametrize(
    "ends",
    [
        pa.array([-62_135_596_800, 253_402_300_799], pa.timestamp("s")),
        pa.array([-62_135_596_800_000_000, 253_402_300_799_999_999], pa.timestamp("us")),
        pa.array([pd.Timestamp.min.value, pd.Timestamp.max.value], pa.timestamp("ns")),
    ],
    ids=["seconds", "microseconds", "nanoseconds"],
)
def test_the_first_and_the_last_time_of_each_unit_are_joined(store: FeatureStore, ends: pa.Array) -> None:
    frame = pa.table({"user_id": ["a", "a"], "event_timestamp": ends})
    job = store.get_historical_features(frame, ["ages:age"])
    assert job.to_arrow()["age"].to_pylist() == [None, 30]
    assert job.metadata is not None and job.metadata.min_event_timestamp < job.metadata.max_event_timestamp


@pytest.mark.parametrize("empty", [None, float("nan"), pd.NaT], ids=["None", "NaN", "NaT"])
def test_a_key_that_is_null_in_every_row_matches_nothing(store: FeatureStore, empty: Any) -> None:
    frame = pd.DataFrame({"user_id": [empty, empty], "event_timestamp": [second(9)] * 2})
    assert [row["age"] for row in rows_of(store, frame, ["ages:age"])] == [None, None]
