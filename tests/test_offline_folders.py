"""Sources of several Parquet files: which files count, in which order, and what if their types differ."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.types import Int64

from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.offline_read import locate, open_snapshot
from liber_feast.offline_store import LiberOfflineStore
from tests.offline_repo import entity_frame, open_store, parquet, rows_of, times, user, write_parquet

AGES: dict[str, Any] = {
    "user_id": ["a", "b"],
    "event_timestamp": times([1, 2]),
    "age": pa.array([30, 40], pa.int64()),
}
STORE = LiberOfflineStore()


def view_on(source: FileSource, *, name: str = "ages", **options: Any) -> FeatureView:
    return FeatureView(name=name, entities=[user], ttl=timedelta(0), source=source, **options)


def open_ages(root: Path) -> FeatureStore:
    store = open_store(root)
    store.apply([user, view_on(parquet("ages"), schema=[Field(name="age", dtype=Int64)])])
    return store


def ages_at(store: FeatureStore, users: list[str], at: int = 9) -> list[int | None]:
    return [row["age"] for row in rows_of(store, entity_frame(users, [at] * len(users)), ["ages:age"])]


def test_a_folder_or_a_pattern_of_parquet_files_is_one_source(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages/1.parquet", AGES)
    store = open_store(tmp_path)
    folder = view_on(parquet("ages"))
    store.apply([user, folder, view_on(parquet("ages/*.parquet"), name="pattern")])
    STORE.offline_write_batch(
        store.config, folder, pa.table({**AGES, "event_timestamp": times([3, 3]), "age": [31, 41]}), None
    )
    assert ages_at(store, ["a", "b"]) == [31, 41]
    found = rows_of(store, entity_frame(["a"], [9]), ["pattern:age"])
    assert found[0]["age"] == 31


def test_what_is_written_to_a_folder_comes_after_what_was_there(tmp_path: Path) -> None:
    for name in ("1", "z~old", "part=1/0"):
        write_parquet(tmp_path / f"ages/{name}.parquet", AGES)
    store = open_ages(tmp_path)
    ages = store.get_feature_view("ages")
    for age in range(5):
        rows = pa.table(
            {"user_id": ["a"], "event_timestamp": times([1]), "age": [age], "part": pa.array([1], pa.int32())}
        )
        STORE.offline_write_batch(store.config, ages, rows, None)
        assert ages_at(store, ["a"]) == [age]


def test_marks_and_hidden_files_in_a_folder_are_no_data(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages/1.parquet", AGES)
    for name in ("_SUCCESS", ".1.parquet.crc", "_temporary/2.parquet", ".cache/3.parquet"):
        (tmp_path / "ages" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "ages" / name).write_text("no data")
    assert ages_at(open_ages(tmp_path), ["a", "b"]) == [30, 40]


def test_a_folder_of_partitions_has_the_columns_of_their_names(tmp_path: Path) -> None:
    root = tmp_path / "lake=1"  # a part of the path above the source is no partition
    for user_id, age in (("a", 30), ("b", 40)):
        columns = {"event_timestamp": times([1]), "age": [age]}
        write_parquet(root / f"ages/_day=2024-01-01/user_id={user_id}/1.parquet", columns)
    assert ages_at(open_ages(root), ["b", "a"]) == [40, 30]
    found = STORE.get_table_column_names_and_types_from_data_source(open_store(root).config, parquet("ages"))
    assert dict(found).keys() == {"event_timestamp", "age", "_day", "user_id"}


def test_an_empty_folder_is_a_missing_source(tmp_path: Path) -> None:
    (tmp_path / "ages").mkdir()
    with pytest.raises(StoreNotReady, match="feature view 'ages': there is no Parquet file at .*ages"):
        ages_at(open_ages(tmp_path), ["a"])


@pytest.mark.parametrize(
    ("column", "later"),
    [
        ("age", pa.array([2**40, 1], pa.int64())),
        ("event_timestamp", pa.array([1, 2], pa.timestamp("ns"))),
    ],
    ids=["wider integer", "finer time"],
)
def test_values_that_do_not_fit_the_first_files_type_are_named(tmp_path: Path, column: str, later: pa.Array) -> None:
    write_parquet(tmp_path / "ages/1.parquet", {**AGES, "age": pa.array([30, 40], pa.int32())})
    write_parquet(tmp_path / "ages/2.parquet", {**AGES, "age": pa.array([30, 40], pa.int32()), column: later})
    with pytest.raises(ConfigError, match=rf"view 'ages': column '{column}' has type .* in .*2\.parquet but") as caught:
        ages_at(open_ages(tmp_path), ["a"])
    assert "\n" not in caught.value.message


def test_a_column_that_a_later_file_lacks_is_null_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages/1.parquet", AGES)
    write_parquet(tmp_path / "ages/2.parquet", {"user_id": ["a"], "event_timestamp": times([5])})
    assert ages_at(open_ages(tmp_path), ["a", "b"]) == [None, 40]


def test_a_column_whose_type_changed_between_files_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages/1.parquet", AGES)
    write_parquet(tmp_path / "ages/2.parquet", {**AGES, "age": ["31", "41"]})
    store = open_store(tmp_path)
    store.apply([user, view_on(parquet("ages"), schema=[Field(name="age", dtype=Int64)])])
    with pytest.raises(ConfigError, match=r"'ages': column 'age' has type string in .*2\.parquet but int64"):
        ages_at(store, ["a"])


def test_wider_integers_and_other_time_units_between_files_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages/1.parquet", AGES)
    write_parquet(
        tmp_path / "ages/2.parquet",
        {
            "user_id": ["c"],
            "event_timestamp": times([3], pa.timestamp("ms", tz="UTC")),
            "age": pa.array([7], pa.int32()),
        },
    )
    store = open_store(tmp_path)
    store.apply([user, view_on(parquet("ages"), schema=[Field(name="age", dtype=Int64)])])
    assert ages_at(store, ["a", "c"]) == [30, 7]


def test_a_pattern_that_matches_no_file_is_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(StoreNotReady, match="no Parquet file at"):
        open_snapshot(locate(parquet("ages/*.parquet"), config=open_store(tmp_path).config))
