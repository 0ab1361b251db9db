"""Our results beside those of Feast's DuckDB store on the same files, and where Feast is wrong what is right.

Feast's store breaks ties of (key, time, created) by chance and orders its rows by chance; here no such ties are made,
and its rows are put in the order of the entity frame. Of the faults below those with a link have a Feast issue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService, FeatureStore, FeatureView, Field
from feast.types import Array, Float64, Int64, String
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.offline_repo import (
    LIBER,
    entity_frame,
    item,
    open_store,
    parquet,
    rows_of,
    second,
    times,
    user,
    write_parquet,
)

FEATURES = {"score": Float64, "tags": Array(String), "count": Int64}
TTLS = {"forever": timedelta(0), "unset": None, "short": timedelta(seconds=3), "tiny": timedelta(milliseconds=250)}
KINDS = [pa.timestamp(unit, tz=zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")]
STORES = (LIBER, "duckdb")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A feature row; times are quarters of a second, or whole seconds where the column holds seconds."""

    user_id: str | None
    item_id: int | None
    time: int | None
    created: int | None
    score: float | None
    tags: list[str | None] | None
    count: int | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A row of the entity frame."""

    user_id: str | None
    friend_id: str | None
    item_id: int | None
    time: int | None


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("duckdb")


def fields(*names: str) -> list[Field]:
    return [Field(name=name, dtype=FEATURES[name]) for name in names or FEATURES]


@pytest.fixture(scope="module")
def stores(repo: Path) -> dict[str, FeatureStore]:
    """Both stores on views of one file: every ttl, several keys, no key, mapped fields, and a service that aliases."""
    write_rows(repo, [], event=KINDS[4], created=KINDS[4])
    found = {}
    for offline in STORES:

        def source(name: str, **options: Any) -> Any:
            path = str(repo / "rows.parquet")
            return parquet(path, name=name, created_timestamp_column="created_timestamp", **options)

        views = {
            name: FeatureView(name=name, entities=[user], ttl=ttl, schema=fields(), source=source(name))
            for name, ttl in TTLS.items()
        }
        views["pairs"] = FeatureView(
            name="pairs", entities=[user, item], ttl=TTLS["short"], schema=fields(), source=source("pairs")
        )
        views["world"] = FeatureView(
            name="world", entities=[], ttl=timedelta(0), schema=fields(), source=source("world")
        )
        mapping = {"score": "points", "count": "total"}
        views["mapped"] = FeatureView(
            name="mapped",
            entities=[user],
            ttl=timedelta(0),
            schema=[Field(name="points", dtype=Float64), Field(name="total", dtype=Int64)],
            source=source("mapped", field_mapping=mapping),
        )
        aliased = FeatureService(
            name="aliased",
            features=[
                views["forever"][["score", "count"]],
                views["short"].with_name("of_friend").with_join_key_map({"user_id": "friend_id"}),
                views["pairs"].with_join_key_map({"user_id": "friend_id", "item_id": "item_id"})[["tags"]],
            ],
        )
        found[offline] = open_store(repo, offline=offline)
        found[offline].apply([user, item, *views.values(), aliased])
    return found


def write_rows(repo: Path, rows: Sequence[Row], *, event: pa.DataType, created: pa.DataType) -> None:
    write_parquet(
        repo / "rows.parquet",
        {
            "user_id": pa.array([row.user_id for row in rows], pa.string()),
            "item_id": pa.array([row.item_id for row in rows], pa.int64()),
            "event_timestamp": moments([row.time for row in rows], event),
            "created_timestamp": moments([row.created for row in rows], created),
            "score": pa.array([row.score for row in rows], pa.float64()),
            "tags": pa.array([row.tags for row in rows], pa.list_(pa.string())),
            "count": pa.array([row.count for row in rows], pa.int64()),
        },
    )


def moments(counts: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    size = 1 if kind.unit == "s" else 0.25
    return times([None if count is None else count * size for count in counts], kind)


def frame_of(asked: Sequence[Asked], kind: pa.DataType) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": pd.Series([row.user_id for row in asked], dtype=object),
            "friend_id": pd.Series([row.friend_id for row in asked], dtype=object),
            "event_timestamp": moments([row.time for row in asked], kind).to_pandas(),
            "item_id": pd.array([row.item_id for row in asked], dtype="Int64"),
            "place": range(len(asked)),
        }
    )


USERS = st.sampled_from(["a", "b"]) | st.none()
ITEMS = st.integers(1, 2) | st.none()
QUARTERS = st.integers(0, 16) | st.none()
ROWS = st.lists(
    st.builds(
        Row,
        user_id=USERS,
        item_id=ITEMS,
        time=QUARTERS,
        created=QUARTERS,
        score=st.none() | st.sampled_from([0.5, 1.0, -2.0]),
        tags=st.none() | st.lists(st.sampled_from(["x", "y", None]), max_size=2),
        count=st.none() | st.sampled_from([2**53 + 1, -1]),
    ),
    max_size=25,
    unique_by=lambda row: (row.time, row.created),
)
ASKED = st.builds(Asked, user_id=USERS | st.just("unknown"), friend_id=USERS, item_id=ITEMS, time=st.integers(-2, 20))
FRAMES = st.lists(ASKED, min_size=1, max_size=8).flatmap(
    lambda rows: st.lists(st.sampled_from(rows), max_size=4).map(lambda again: [*rows, *again])  # duplicates too
)
REFS = [f"{view}:{name}" for view in (*TTLS, "pairs", "world") for name in FEATURES] + ["mapped:points", "mapped:total"]


def result(store: FeatureStore, frame: pd.DataFrame, features: Any, **options: Any) -> dict[str, list[Any]]:
    """Return the columns of a retrieval; times as UTC, whatever their unit."""
    table = store.get_historical_features(frame.copy(), features, **options).to_arrow()
    kind = pa.timestamp("us", tz="UTC")
    place = table.column_names.index("event_timestamp")
    columns: dict[str, list[Any]] = table.set_column(
        place, "event_timestamp", table.column(place).cast(kind)
    ).to_pydict()
    return columns


def in_order(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    order = np.argsort(columns["place"])
    return {name: [values[place] for place in order] for name, values in columns.items()}


@settings(max_examples=60)
@given(
    rows=ROWS,
    asked=FRAMES,
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 3),
    refs=st.lists(st.sampled_from(REFS), min_size=1, max_size=4, unique=True),
    cut=st.booleans(),
    full=st.booleans(),
    nowhen=st.booleans(),
)
def test_results_equal_those_of_feasts_duckdb_store(
    stores: dict[str, FeatureStore],
    repo: Path,
    rows: list[Row],
    asked: list[Asked],
    kinds: tuple[pa.DataType, pa.DataType, pa.DataType],
    refs: list[str],
    cut: bool,
    full: bool,
    nowhen: bool,
) -> None:
    write_rows(repo, rows, event=kinds[0], created=kinds[1])
    if nowhen:  # a row without a time finds nothing
        asked = [*asked, Asked(user_id="a", friend_id="a", item_id=1, time=None)]
    names = [ref.split(":")[1] for ref in refs]
    options = {"full_feature_names": full or len(set(names)) < len(names), "filter_by_created_timestamp": cut}
    ours, theirs = (result(stores[offline], frame_of(asked, kinds[2]), refs, **options) for offline in STORES)
    assert ours["place"] == list(range(len(asked)))
    assert list(ours) == list(theirs)
    assert ours == in_order(theirs)


@settings(max_examples=25)
@given(rows=ROWS, asked=FRAMES, kind=st.sampled_from(KINDS), cut=st.booleans())
def test_a_service_with_aliases_and_key_maps_equals_that_of_feasts_duckdb_store(
    stores: dict[str, FeatureStore], repo: Path, rows: list[Row], asked: list[Asked], kind: pa.DataType, cut: bool
) -> None:
    write_rows(repo, rows, event=kind, created=kind)
    assume(any(row.friend_id for row in asked))
    options = {"full_feature_names": True, "filter_by_created_timestamp": cut}
    ours, theirs = (
        result(store, frame_of(asked, kind), store.get_feature_service("aliased"), **options)
        for store in (stores[offline] for offline in STORES)
    )
    assert ours["place"] == list(range(len(asked)))
    assert list(ours) == list(theirs)
    assert ours == in_order(theirs)


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, FeatureStore]:
    """Both stores on views that Feast's gets wrong."""
    columns = {"user_id": ["a", "a", "b"], "item_id": [1, 2, 1], "event_timestamp": times([0, 1, 0])}
    write_parquet(tmp_path / "pairs.parquet", {**columns, "value": [1, 2, 3], "value_y": [4, 5, 6]})
    write_parquet(tmp_path / "world.parquet", {"event_timestamp": times([0]), "value": [7]})
    found = {}
    for offline in STORES:
        names = ["value", "value_y"]
        pairs = FeatureView(
            name="pairs",
            entities=[user, item],
            ttl=timedelta(0),
            schema=[Field(name=name, dtype=Int64) for name in names],
            source=parquet(str(tmp_path / "pairs.parquet")),
        )
        world = FeatureView(
            name="world",
            entities=[],
            ttl=timedelta(0),
            schema=[Field(name="value", dtype=Int64)],
            source=parquet(str(tmp_path / "world.parquet")),
        )
        one_key = FeatureService(
            name="one_key", features=[pairs[["value"]].with_join_key_map({"user_id": "friend_id"})]
        )
        found[offline] = open_store(tmp_path, offline=offline)
        found[offline].apply([user, item, pairs, world, one_key])
    return found


def test_a_join_key_map_of_one_key_leaves_the_others_in_the_join(pair: dict[str, FeatureStore]) -> None:
    """Feast joins on the mapped keys alone, so that a friend's latest row of any item is found."""
    frame = entity_frame(["b"], [5], friend_id=["a"], item_id=[1])
    found = {name: rows_of(store, frame, store.get_feature_service("one_key")) for name, store in pair.items()}
    assert found[LIBER][0]["value"] == 1
    assert found["duckdb"][0]["value"] == 2


def test_a_feature_may_have_a_name_that_ends_in_y(pair: dict[str, FeatureStore]) -> None:
    """Feast drops it together with the columns that its join renamed."""
    frame = entity_frame(["b"], [5], item_id=[1])
    assert rows_of(pair[LIBER], frame, ["pairs:value_y"])[0]["value_y"] == 6
    with pytest.raises(Exception, match="'value_y' is not found"):
        rows_of(pair["duckdb"], frame, ["pairs:value_y"])


def test_a_view_without_entities_is_materialized(pair: dict[str, FeatureStore]) -> None:
    """Feast's engine asks for a dummy key that its DuckDB store does not give."""
    pair[LIBER].materialize(second(-1), second(9), ["world"])
    online = pair[LIBER].get_online_features(["world:value", "pairs:value_y"], [{"user_id": "a", "item_id": 1}])
    assert online.to_dict() == {"user_id": ["a"], "item_id": [1], "value": [7], "value_y": [None]}
    with pytest.raises(ValueError, match="__dummy_id not found"):
        pair["duckdb"].materialize(second(-1), second(9), ["world"])


@pytest.mark.filterwarnings("ignore:Discarding nonzero nanoseconds:UserWarning")  # of Feast's metadata
def test_times_of_single_nanoseconds_are_compared_as_they_are(pair: dict[str, FeatureStore]) -> None:
    """Feast refuses a frame whose times do not fit microseconds."""
    moments = pd.to_datetime([second(1)] * 2, utc=True).as_unit("ns") + pd.to_timedelta([-1, 1], unit="ns")
    frame = pd.DataFrame({"user_id": ["a"] * 2, "item_id": [2] * 2, "event_timestamp": moments})
    assert [row["value"] for row in rows_of(pair[LIBER], frame, ["pairs:value"])] == [None, 2]
    with pytest.raises(pa.ArrowInvalid, match="would lose data"):
        rows_of(pair["duckdb"], frame, ["pairs:value"])


def test_a_retrieval_without_a_frame_returns_the_window(pair: dict[str, FeatureStore]) -> None:
    """Feast's DuckDB store has no such retrieval: https://github.com/feast-dev/feast/issues/5832"""
    window = {"start_date": second(1), "end_date": second(2)}
    assert [row["value"] for row in rows_of(pair[LIBER], None, ["pairs:value"], **window)] == [2]
    with pytest.raises(TypeError, match="unexpected keyword argument 'start_date'"):
        rows_of(pair["duckdb"], None, ["pairs:value"], **window)


def test_an_empty_frame_is_no_fault(pair: dict[str, FeatureStore]) -> None:
    """Feast looks for the first and the last time of the frame and finds a float."""
    frame = pd.DataFrame({"user_id": [], "item_id": [], "event_timestamp": []})
    assert rows_of(pair[LIBER], frame, ["pairs:value"]) == []
    with pytest.raises(AttributeError, match="to_pydatetime"):
        rows_of(pair["duckdb"], frame, ["pairs:value"])


def test_rows_that_share_key_and_time_stay_apart(tmp_path: Path, pair: dict[str, FeatureStore]) -> None:
    """Feast's Dask store makes one of them: https://github.com/feast-dev/feast/issues/6787"""
    frame = entity_frame(["a", "a", "b", "a", "a"], [5, 5, 5, 6, 5], item_id=[1, 1, 1, 2, 1], label=[0, 1, 2, 3, 4])
    dask = open_store(tmp_path, offline="dask")
    dask.apply([user, item, pair[LIBER].get_feature_view("pairs")])
    found = rows_of(pair[LIBER], frame, ["pairs:value"])
    assert [(row["label"], row["value"]) for row in found] == [(0, 1), (1, 1), (2, 3), (3, 2), (4, 1)]
    assert len(rows_of(dask, frame, ["pairs:value"])) < len(frame)
