"""The files behind the offline store: schemas, pulls, and files that are missing, damaged or of several types."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Float64, Int64, String
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.offline_pull import Pull
from liber_feast.offline_read import feast_types, locate, open_snapshot
from liber_feast.offline_store import LiberOfflineStore
from tests.offline_repo import (
    START,
    delta,
    entity_frame,
    open_store,
    parquet,
    rows_of,
    second,
    times,
    user,
    write_parquet,
)

AGES = {"user_id": ["a", "b"], "event_timestamp": times([1, 2]), "age": pa.array([30, 40], pa.int64())}
STORE = LiberOfflineStore()


def view_on(source: FileSource, *, name: str = "ages", **options: Any) -> FeatureView:
    return FeatureView(name=name, entities=[user], ttl=timedelta(0), source=source, **options)


@pytest.fixture(params=["parquet", "delta"])
def ages(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """A repo with one view over `data/ages`, whose features Feast infers."""
    if request.param == "parquet":
        write_parquet(tmp_path / "data/ages.parquet", AGES)
        source = parquet("data/ages.parquet")
    else:
        write_deltalake(tmp_path / "data/ages", pa.table(AGES))
        source = delta("data/ages")
    store = open_store(tmp_path)
    store.apply([user, source, view_on(source)])
    return store


def ages_at(store: FeatureStore, users: list[str], at: int = 9) -> list[int | None]:
    return [row["age"] for row in rows_of(store, entity_frame(users, [at] * len(users)), ["ages:age"])]


def test_paths_are_relative_to_the_repo_and_features_inferred(ages: FeatureStore) -> None:
    assert [(field.name, field.dtype) for field in ages.get_feature_view("ages").features] == [("age", Int64)]
    assert ages_at(ages, ["b", "a", "c"]) == [40, 30, None]


def test_feast_understands_the_types_of_every_column(tmp_path: Path) -> None:
    columns = {
        "item_id": pa.array(["i"]),
        "event_timestamp": times([0]),
        "categories": pa.array([["x", "y"]], pa.list_(pa.string())),
        "vector": pa.array([[1.0]], pa.list_(pa.float32())),
        "nested": pa.array([[[1.0]]], pa.list_(pa.list_(pa.float64()))),
        "price": pa.array([1.5]),
        "flag": pa.array([True]),
    }
    write_deltalake(tmp_path / "items", pa.table(columns))
    source = delta("items")
    store = open_store(tmp_path)
    found = dict(STORE.get_table_column_names_and_types_from_data_source(store.config, source))
    assert found["categories"] == "list<item: string>"
    assert found["nested"] == "list<item: list<item: double>>"
    understood = {name: source.source_datatype_to_feast_value_type()(kind).name for name, kind in found.items()}
    assert understood == {
        "item_id": "STRING",
        "event_timestamp": "UNIX_TIMESTAMP",
        "categories": "STRING_LIST",
        "vector": "FLOAT_LIST",
        "nested": "VALUE_LIST",
        "price": "DOUBLE",
        "flag": "BOOL",
    }


def test_texts_in_a_dictionary_are_texts(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "a.parquet",
        {"user_id": pa.array(["a", "b"]).dictionary_encode(), **{k: AGES[k] for k in ("event_timestamp", "age")}},
    )
    source = parquet("a.parquet")
    store = open_store(tmp_path)
    assert ("user_id", "string") in STORE.get_table_column_names_and_types_from_data_source(store.config, source)
    store.apply([user, view_on(source, schema=[Field(name="age", dtype=Int64)])])
    assert ages_at(store, ["b", "a"]) == [40, 30]


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]) | st.none(), st.integers(0, 5), st.integers(0, 2) | st.none(), st.integers(0, 9)
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return open_store(tmp_path_factory.mktemp("pull"))


@settings(max_examples=50)
@given(rows=ROWS, low=st.integers(0, 5), high=st.integers(0, 5), unit=st.sampled_from(["s", "ns"]), keyed=st.booleans())
def test_a_pull_reads_the_window_both_ends_included(
    shared_store: FeatureStore,
    rows: list[tuple[str | None, int, int | None, int]],
    low: int,
    high: int,
    unit: str,
    keyed: bool,
) -> None:
    write_parquet(
        shared_store.config.repo_path / "pull.parquet",
        {
            "user_id": pa.array([row[0] for row in rows], pa.string()),
            "at": times([row[1] for row in rows], pa.timestamp(unit)),
            "made": times([row[2] for row in rows], pa.timestamp(unit)),
            "age": pa.array([row[3] for row in rows], pa.int64()),
        },
    )
    keys = ["user_id"] if keyed else []
    asked = (shared_store.config, parquet("pull.parquet"), keys, ["age"], "at", "made", second(low), second(high))
    inside = [(place, row) for place, row in enumerate(rows) if low <= row[1] <= high]
    pulled = STORE.pull_all_from_table_or_query(*asked).to_arrow()
    assert pulled.column("age").to_pylist() == [row[3] for _, row in inside]
    assert pulled.column_names == [*keys, "age", "at", "made", *([] if keyed else ["__dummy_id"])]
    assert pulled.schema.field("at").type.tz == "UTC"
    best: dict[str | None, tuple[tuple[int, int, int], int]] = {}
    for place, (key, at, made, age) in inside:
        rank = (at, -1 if made is None else made, place)
        best[key if keyed else None] = max(best.get(key if keyed else None, ((-1, -1, -1), -1)), (rank, age))
    newest = STORE.pull_latest_from_table_or_query(*asked).to_arrow()
    assert newest.column("age").to_pylist() == [age for _, age in best.values()]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()], ids=str)
def test_a_pull_reads_the_window_of_dates(shared_store: FeatureStore, kind: pa.DataType) -> None:
    days = [START + timedelta(days=count) for count in range(5)]
    at = pa.array([day.date() for day in days] + [None], kind)
    write_parquet(shared_store.config.repo_path / "days.parquet", {"user_id": pa.array(["a"] * 6), "at": at})

    def pulled(low: datetime, high: datetime) -> list[datetime]:
        asked = (shared_store.config, parquet("days.parquet"), ["user_id"], ["user_id"], "at", None, low, high)
        rows: list[datetime] = STORE.pull_all_from_table_or_query(*asked).to_arrow().column("at").to_pylist()
        return rows

    moment = timedelta(microseconds=1)
    assert pulled(days[1], days[3]) == days[1:4]
    assert pulled(days[1] + moment, days[3] - moment) == days[2:3]


@pytest.mark.parametrize("kind", [pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.date32()], ids=str)
def test_rows_without_a_time_are_pulled_only_when_asked_for(shared_store: FeatureStore, kind: pa.DataType) -> None:
    columns = {"age": pa.array([1, 2, 3, 4], pa.int64()), "at": pa.array([None, START, START + timedelta(9)] + [None])}
    columns["at"] = columns["at"].cast(pa.timestamp("us", "UTC")).cast(kind)
    write_parquet(shared_store.config.repo_path / "nulls.parquet", columns)
    pull = Pull(
        config=shared_store.config,
        source=parquet("nulls.parquet"),
        keys=[],
        features=["age"],
        time="at",
        created=None,
        start=START,
        end=START + timedelta(1),
    )
    assert pull.rows().column("age").to_pylist() == [2]
    assert replace(pull, with_null_times=True).rows().column("age").to_pylist() == [1, 2, 4]


def test_a_pull_without_features_or_dates_reads_every_column(ages: FeatureStore) -> None:
    source = ages.get_feature_view("ages").batch_source
    found = STORE.pull_all_from_table_or_query(ages.config, source, ["user_id"], [], "event_timestamp").to_df()
    assert found.to_dict("list") == {"user_id": ["a", "b"], "event_timestamp": [second(1), second(2)], "age": [30, 40]}


def test_of_delta_commits_the_later_one_wins_a_tie(tmp_path: Path) -> None:
    for age in range(6):
        table = pa.table({"user_id": ["a"], "event_timestamp": times([1]), "age": [age]})
        write_deltalake(tmp_path / "ages", table, mode="append")
    store = open_store(tmp_path)
    store.apply([user, view_on(delta("ages"))])
    assert ages_at(store, ["a"]) == [5]
    DeltaTable(tmp_path / "ages").create_checkpoint()
    assert ages_at(store, ["a"]) == [5]


def test_partitioned_delta_tables_are_read_whole(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "ages", pa.table({**AGES, "part": ["x y", "ä=1"]}), partition_by=["part"])
    store = open_store(tmp_path)
    store.apply([user, view_on(delta("ages"))])
    assert ages_at(store, ["a", "b"]) == [30, 40]


def test_a_snapshot_does_not_see_what_is_written_after_it_was_opened(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "ages", pa.table(AGES))
    snapshot = open_snapshot(locate(delta("ages"), config=open_store(tmp_path).config))
    write_deltalake(tmp_path / "ages", pa.table(AGES), mode="append")
    write_deltalake(tmp_path / "ages", pa.table({**AGES, "age": [1, 2]}), mode="overwrite")
    assert snapshot.read(["age"]).column("age").to_pylist() == [30, 40]


@pytest.mark.parametrize(
    ("tags", "remedy"),
    [
        ({}, "liber load DATA"),
        ({"liber.stage": "behaviors"}, "liber load DATA"),
        ({"liber.stage": "summary"}, "feast materialize START END"),
    ],
    ids=["plain", "behaviors", "published"],
)
@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_a_missing_file_is_named_with_its_view_and_what_to_run(
    tmp_path: Path, tags: dict[str, str], remedy: str, kind: str
) -> None:
    source = parquet("gone.parquet") if kind == "parquet" else delta("gone")
    store = open_store(tmp_path)
    store.apply([user, view_on(source, schema=[Field(name="age", dtype=Int64)], tags=tags)])
    with pytest.raises(StoreNotReady, match=remedy) as caught:
        ages_at(store, ["a"])
    message = caught.value.message
    assert "feature view 'ages'" in message and str(tmp_path / "gone") in message and "\n" not in message
    STORE.validate_data_source(store.config, source)


def test_a_file_that_vanishes_meanwhile_is_reported_as_missing(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages.parquet", AGES)
    snapshot = open_snapshot(locate(parquet("ages.parquet"), config=open_store(tmp_path).config))
    (tmp_path / "ages.parquet").unlink()
    with pytest.raises(StoreNotReady, match="there is no Parquet file"):
        snapshot.read(["age"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ages.parquet").write_bytes(b"not parquet")
    store = open_store(tmp_path)
    store.apply([user, view_on(parquet("ages.parquet"), schema=[Field(name="age", dtype=Int64)])])
    with pytest.raises(ConfigError, match=r"feature view 'ages': .*ages\.parquet cannot be read"):
        ages_at(store, ["a"])


def test_a_missing_column_is_named_with_what_was_found(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages.parquet", AGES)
    store = open_store(tmp_path)
    store.apply([user, view_on(parquet("ages.parquet"), schema=[Field(name="size", dtype=Float64)])])
    with pytest.raises(ConfigError, match="feature view 'ages': column 'size' is missing.*found user_id"):
        rows_of(store, entity_frame(["a"], [9]), ["ages:size"])


def test_a_source_without_its_timestamp_is_refused_at_apply(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages.parquet", {"user_id": ["a"], "age": [1]})
    with pytest.raises(ConfigError, match="column 'event_timestamp' is missing"):
        STORE.validate_data_source(open_store(tmp_path).config, parquet("ages.parquet"))


def test_a_timestamp_of_another_type_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages.parquet", {**AGES, "event_timestamp": ["2024", "2025"]})
    store = open_store(tmp_path)
    store.apply([user, view_on(parquet("ages.parquet"), schema=[Field(name="age", dtype=Int64)])])
    with pytest.raises(ConfigError, match="feature view 'ages': column 'event_timestamp' has type string"):
        ages_at(store, ["a"])


def test_other_kinds_of_source_are_refused(tmp_path: Path) -> None:
    source = PushSource(name="push", batch_source=parquet("ages.parquet"))
    with pytest.raises(ConfigError, match="'push': its batch source is PushSource; the store reads FileSource"):
        STORE.validate_data_source(open_store(tmp_path).config, source)


def test_lists_of_texts_and_of_lists_are_features(tmp_path: Path) -> None:
    categories = pa.array([["x"], None, []], pa.list_(pa.string()))
    nested = pa.array([[[1]], [[2], []], None], pa.list_(pa.list_(pa.int64())))
    columns = {
        "user_id": ["a", "b", "c"],
        "event_timestamp": times([0] * 3),
        "categories": categories,
        "nested": nested,
    }
    write_deltalake(tmp_path / "lists", pa.table(columns))
    schema = [Field(name="categories", dtype=Array(String)), Field(name="nested", dtype=Array(Array(Int64)))]
    store = open_store(tmp_path)
    store.apply([user, view_on(delta("lists"), name="lists", schema=schema)])
    found = rows_of(store, entity_frame(["c", "b", "a", "d"], [1] * 4), ["lists:categories", "lists:nested"])
    assert [row["categories"] for row in found] == [[], None, ["x"], None]
    assert [row["nested"] for row in found] == [None, [[2], []], [[1]], None]


def test_materializing_through_feasts_local_engine_reads_the_latest_rows(ages: FeatureStore) -> None:
    ages.write_to_offline_store("ages", pd.DataFrame({"age": [31], "event_timestamp": [second(5)], "user_id": ["a"]}))
    ages.materialize(second(0), second(9))
    online = ages.get_online_features(["ages:age"], [{"user_id": "a"}, {"user_id": "b"}]).to_dict()
    assert online["age"] == [31, 40]


def test_an_object_stores_endpoint_reaches_deltalake(tmp_path: Path) -> None:
    source = delta("s3://bucket/ages", s3_endpoint_override="http://localhost:9000")
    location = locate(source, config=open_store(tmp_path).config)
    assert (location.path, location.storage_options) == (
        "s3://bucket/ages",
        {"AWS_ENDPOINT_URL": "http://localhost:9000"},
    )


def test_a_damaged_delta_log_is_named(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "ages", pa.table(AGES))
    next((tmp_path / "ages/_delta_log").glob("*.json")).write_text("not json")
    with pytest.raises(ConfigError, match="data source 'ages': .*ages cannot be read"):
        open_snapshot(locate(delta("ages"), config=open_store(tmp_path).config))


def test_vectors_of_a_fixed_width_and_views_on_texts_have_feasts_types(tmp_path: Path) -> None:
    columns = {
        "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        "text": pa.array(["a"], pa.string_view()),
    }
    assert dict(feast_types(pa.table(columns).schema)) == {
        "vector": "fixed_size_list<item: float>[2]",
        "text": "string",
    }
