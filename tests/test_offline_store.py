from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService, FeatureStore, FeatureView, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.errors import ConfigError
from tests.offline_repo import (
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

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")

FEATURES = [Field(name="score", dtype=Float64), Field(name="tags", dtype=Array(String))]
UNITS = [pa.timestamp(unit, tz=zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")]
TTLS = {"forever": 0, "short": 3}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One feature row; times are seconds."""

    user_id: str | None
    time: int | None
    created: int | None
    score: float | None
    tags: list[str] | None


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repo")


@pytest.fixture(scope="module")
def stores(repo: Path) -> dict[str, FeatureStore]:
    """Our store and Feast's DuckDB store, both on the views `forever`, `short` and `bare` over one file."""
    found = {}
    write_rows(repo, [], kind=UNITS[0])
    for name, offline in (("liber", "liber_feast.offline_store.LiberOfflineStore"), ("duckdb", "duckdb")):
        store = open_store(repo, offline=offline)
        path = str(repo / "rows.parquet")
        created = parquet(path, name="created", created_timestamp_column="created_timestamp")
        views = [
            FeatureView(name=view, entities=[user], ttl=timedelta(seconds=ttl), schema=FEATURES, source=created)
            for view, ttl in TTLS.items()
        ]
        bare = FeatureView(
            name="bare", entities=[user], ttl=timedelta(0), schema=FEATURES, source=parquet(path, name="bare")
        )
        store.apply([user, *views, bare])
        found[name] = store
    return found


def write_rows(repo: Path, rows: list[Row], *, kind: pa.DataType) -> None:
    write_parquet(
        repo / "rows.parquet",
        {
            "user_id": pa.array([row.user_id for row in rows], pa.string()),
            "event_timestamp": times([row.time for row in rows], kind),
            "created_timestamp": times([row.created for row in rows], kind),
            "score": pa.array([row.score for row in rows], pa.float64()),
            "tags": pa.array([row.tags for row in rows], pa.list_(pa.string())),
        },
    )


def latest(rows: list[Row], key: str | None, time: int, *, ttl: int, by_created: bool, cut: bool) -> Row | None:
    """The rule, row by row: the visible row with the greatest (time, created, place)."""
    fits = [
        (row.time, (-1 if row.created is None else row.created) if by_created else 0, place)
        for place, row in enumerate(rows)
        if row.user_id is not None
        and row.user_id == key
        and row.time is not None
        and row.time <= time
        and (not ttl or row.time >= time - ttl)
        and (not (cut and by_created) or (row.created is not None and row.created <= time))
    ]
    return rows[max(fits)[2]] if fits else None


USERS = st.sampled_from(["a", "b"])
SECONDS = st.integers(0, 5)
SCORES = st.none() | st.sampled_from([0.5, 1.0, -2.0])
TAGS = st.none() | st.lists(st.sampled_from(["x", "y"]), max_size=2)
ANY_ROWS = st.lists(
    st.builds(
        Row, user_id=USERS | st.none(), time=SECONDS | st.none(), created=SECONDS | st.none(), score=SCORES, tags=TAGS
    ),
    max_size=15,
)
FRAMES = st.lists(st.tuples(USERS | st.just("unknown") | st.none(), st.integers(-1, 10)), max_size=8)


@settings(max_examples=60)
@given(
    rows=ANY_ROWS,
    frame=FRAMES,
    kind=st.sampled_from(UNITS),
    view=st.sampled_from(["forever", "short", "bare"]),
    cut=st.booleans(),
)
def test_every_entity_row_gets_the_latest_row_at_or_before_its_time(
    stores: dict[str, FeatureStore],
    repo: Path,
    rows: list[Row],
    frame: list[tuple[str | None, int]],
    kind: pa.DataType,
    view: str,
    cut: bool,
) -> None:
    write_rows(repo, rows, kind=kind)
    entities = entity_frame([key for key, _ in frame], [time for _, time in frame], place=range(len(frame)))
    entities["event_timestamp"] = entities["event_timestamp"].astype("datetime64[ns, UTC]")
    found = rows_of(stores["liber"], entities, [f"{view}:score", f"{view}:tags"], filter_by_created_timestamp=cut)
    assert [row["place"] for row in found] == list(range(len(frame)))
    for row, (key, time) in zip(found, frame, strict=True):
        best = latest(rows, key, time, ttl=TTLS.get(view, 0), by_created=view != "bare", cut=cut)
        assert (row["score"], row["tags"]) == ((None, None) if best is None else (best.score, best.tags))


@pytest.mark.parametrize("name", ["liber", "duckdb"])
def test_a_row_as_old_as_its_time_to_live_counts_and_an_older_one_does_not(
    stores: dict[str, FeatureStore], repo: Path, name: str
) -> None:
    write_rows(repo, [Row(user_id="a", time=1, created=1, score=1.0, tags=None)], kind=pa.timestamp("us"))
    frame = entity_frame(["a", "a"], [1 + TTLS["short"], 1.000001 + TTLS["short"]])
    assert [row["score"] for row in rows_of(stores[name], frame, ["short:score"])] == [1.0, None]


@pytest.mark.parametrize("name", ["liber", "duckdb"])
def test_of_rows_at_one_time_one_without_a_created_time_counts_last(
    stores: dict[str, FeatureStore], repo: Path, name: str
) -> None:
    rows = [
        Row(user_id="a", time=1, created=created, score=float(created or -1), tags=None) for created in (2, None, 1)
    ]
    for order in (rows, rows[::-1]):
        write_rows(repo, order, kind=pa.timestamp("us"))
        frame = entity_frame(["a"], [5])
        assert [row["score"] for row in rows_of(stores[name], frame, ["forever:score"])] == [2.0]


def test_a_time_finer_than_the_sources_unit_does_not_reach_a_later_row(
    stores: dict[str, FeatureStore], repo: Path
) -> None:
    write_rows(repo, [Row(user_id="a", time=5, created=5, score=1.0, tags=None)], kind=pa.timestamp("s"))
    moments = pd.to_datetime([second(5)] * 3, utc=True).as_unit("ns") + pd.to_timedelta([-1, 0, 1], unit="ns")
    frame = pd.DataFrame({"user_id": ["a"] * 3, "event_timestamp": moments})
    assert [row["score"] for row in rows_of(stores["liber"], frame, ["forever:score"])] == [None, 1.0, 1.0]


def test_dates_far_outside_nanoseconds_are_compared_as_they_are(stores: dict[str, FeatureStore], repo: Path) -> None:
    far = pa.array([-62_000_000_000, 1_704_067_201, 250_000_000_000], pa.timestamp("s"))
    write_parquet(
        repo / "rows.parquet",
        {
            "user_id": ["a", "a", "b"],
            "event_timestamp": far,
            "created_timestamp": far,
            "score": [1.0, 2.0, 3.0],
            "tags": pa.array([None] * 3, pa.list_(pa.string())),
        },
    )
    frame = entity_frame(["a", "a", "b"], [0, 1, 5])
    assert [row["score"] for row in rows_of(stores["liber"], frame, ["forever:score"])] == [1.0, 2.0, None]
    assert [row["score"] for row in rows_of(stores["liber"], frame, ["short:score"])] == [None, 2.0, None]


def test_the_frame_keeps_its_columns_order_and_duplicates(stores: dict[str, FeatureStore], repo: Path) -> None:
    write_rows(repo, [Row(user_id="a", time=0, created=0, score=1.0, tags=["x"])], kind=UNITS[0])
    frame = entity_frame(["b", "a", "a", "a"], [3, 2, 2, 1])[["event_timestamp", "user_id"]].assign(label=[1, 0, 0, 1])
    found = rows_of(stores["liber"], frame, ["forever:tags"])
    assert list(found[0]) == ["event_timestamp", "user_id", "label", "tags"]
    assert [(row["user_id"], row["label"], row["tags"]) for row in found] == [
        ("b", 1, None),
        ("a", 0, ["x"]),
        ("a", 0, ["x"]),
        ("a", 1, ["x"]),
    ]
    assert [row["event_timestamp"] for row in found] == [second(3), second(2), second(2), second(1)]


def test_naive_times_are_utc_and_another_timestamp_column_may_be_the_event_time(
    stores: dict[str, FeatureStore], repo: Path
) -> None:
    write_rows(repo, [Row(user_id="a", time=5, created=0, score=1.0, tags=None)], kind=UNITS[0])
    frame = pd.DataFrame(
        {"at": [second(5).replace(tzinfo=None), second(4).replace(tzinfo=None)], "user_id": ["a", "a"]}
    )
    found = rows_of(stores["liber"], frame, ["forever:score"])
    assert found == [{"at": second(5), "user_id": "a", "score": 1.0}, {"at": second(4), "user_id": "a", "score": None}]


def test_an_arrow_table_is_an_entity_frame_too(stores: dict[str, FeatureStore], repo: Path) -> None:
    write_rows(repo, [Row(user_id="a", time=5, created=0, score=1.0, tags=None)], kind=UNITS[0])
    frame = pa.table({"user_id": ["a"], "event_timestamp": times([7])})
    assert rows_of(stores["liber"], frame, ["forever:score"])[0]["score"] == 1.0


def test_an_empty_frame_gives_an_empty_table_with_every_column(stores: dict[str, FeatureStore], repo: Path) -> None:
    write_rows(repo, [Row(user_id="a", time=5, created=0, score=1.0, tags=None)], kind=UNITS[0])
    frame = entity_frame([], [])
    table = stores["liber"].get_historical_features(frame, ["forever:score", "forever:tags"]).to_arrow()
    assert (table.num_rows, table.column_names) == (0, ["user_id", "event_timestamp", "score", "tags"])
    assert table.schema.field("tags").type == pa.list_(pa.string())


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[FeatureStore]:
    """Several entities, an entity-less view, a field mapping, an on-demand view."""
    store = open_store(tmp_path)
    write_parquet(
        tmp_path / "pairs.parquet",
        {
            "user_id": ["a", "a", "b"],
            "item_id": pa.array([1, 2, 1], pa.int32()),
            "event_timestamp": times([1, 2, 3]),
            "raw": [1.0, 2.0, 3.0],
        },
    )
    write_parquet(tmp_path / "world.parquet", {"event_timestamp": times([1, 5]), "weather": ["sun", "rain"]})
    write_parquet(tmp_path / "users.parquet", {"uid": ["a", "b"], "at": times([0, 0]), "age": [30, 40]})
    pairs = FeatureView(
        name="pairs",
        entities=[user, item],
        ttl=timedelta(0),
        schema=[Field(name="clicks", dtype=Float64)],
        source=parquet("pairs.parquet", field_mapping={"raw": "clicks"}),
    )
    world = FeatureView(
        name="world",
        entities=[],
        ttl=timedelta(0),
        schema=[Field(name="weather", dtype=String)],
        source=parquet("world.parquet"),
    )
    ages_source = parquet("users.parquet", field_mapping={"uid": "user_id", "at": "event_timestamp"})
    ages = FeatureView(
        name="ages", entities=[user], ttl=timedelta(0), schema=[Field(name="age", dtype=Int64)], source=ages_source
    )
    request = RequestSource(name="request", schema=[Field(name="bonus", dtype=Int64)])

    @on_demand_feature_view(sources=[ages, request], schema=[Field(name="older", dtype=Int64)])
    def aged(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"older": inputs["age"] + inputs["bonus"]})

    service = FeatureService(name="everything", features=[pairs, ages, world, aged])
    store.apply([user, item, pairs, world, ages, aged, service])
    yield store


def test_a_view_is_joined_on_all_its_entities_or_on_none(wide: FeatureStore) -> None:
    frame = entity_frame(["a", "a", "b", None], [9, 1, 2, 5], item_id=[2, 1, 1, 1])
    found = rows_of(wide, frame, ["pairs:clicks", "world:weather"])
    assert [(row["clicks"], row["weather"]) for row in found] == [
        (2.0, "rain"),
        (1.0, "sun"),
        (None, "sun"),
        (None, "rain"),
    ]


def test_a_service_with_an_on_demand_view_computes_its_features(wide: FeatureStore) -> None:
    frame = entity_frame(["a", "b"], [9, 9], item_id=[2, 1], bonus=[1, 2])
    job = wide.get_historical_features(frame, wide.get_feature_service("everything"))
    found = job.to_df()
    assert found[["clicks", "age", "weather", "older"]].to_numpy().tolist() == [
        [2.0, 30, "rain", 31],
        [3.0, 40, "rain", 42],
    ]


def test_full_names_carry_the_alias_and_keys_their_alias(wide: FeatureStore) -> None:
    ages = wide.get_feature_view("ages")
    services = FeatureService(
        name="friends",
        features=[
            ages.with_name("ages_of_friend").with_join_key_map({"user_id": "friend_id"}),
            ages.with_name("own_age"),
        ],
    )
    wide.apply([services])
    frame = entity_frame(["a", "b"], [9, 9], friend_id=["b", "nobody"])
    found = rows_of(wide, frame, wide.get_feature_service("friends"), full_feature_names=True)
    assert [(row["own_age__age"], row["ages_of_friend__age"]) for row in found] == [(30, 40), (40, None)]


def test_without_a_frame_every_feature_row_of_the_window_is_returned(wide: FeatureStore) -> None:
    found = rows_of(wide, None, ["pairs:clicks"], start_date=second(2), end_date=second(3))
    assert found == [
        {"event_timestamp": second(2), "user_id": "a", "item_id": 2, "clicks": 2.0},
        {"event_timestamp": second(3), "user_id": "b", "item_id": 1, "clicks": 3.0},
    ]
    assert rows_of(wide, None, ["pairs:clicks"], start_date=second(50), end_date=second(60)) == []


def test_without_a_frame_several_views_meet_at_every_key_and_time_of_the_window(wide: FeatureStore) -> None:
    found = rows_of(wide, None, ["pairs:clicks", "ages:age"], start_date=second(0), end_date=second(2))
    assert [(row["event_timestamp"], row["user_id"], row["item_id"], row["clicks"], row["age"]) for row in found] == [
        (second(0), "a", None, None, 30),
        (second(0), "b", None, None, 40),
        (second(1), "a", 1, 1.0, 30),
        (second(2), "a", 2, 2.0, 30),
    ]


def test_metadata_says_keys_features_and_the_times(wide: FeatureStore) -> None:
    job = wide.get_historical_features(entity_frame(["a", "b"], [9, 4], item_id=[1, 1]), ["ages:age"])
    assert job.metadata is not None
    assert (job.metadata.features, job.metadata.keys) == (["ages:age"], ["user_id", "item_id"])
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (second(4), second(9))
    assert not job.full_feature_names


@pytest.mark.parametrize(
    ("source", "asked", "found"),
    [
        (pa.array([1, 2], pa.int32()), [2, None], [20, None]),
        (pa.array([1.5, 2.0]), [2, 1], [20, None]),
        (times([1, 2]), [second(2), second(9)], [20, None]),
        (pa.array([True, False]), [False, None], [20, None]),
        (pa.array(["1", "2"], pa.large_string()), ["2", "3"], [20, None]),
    ],
    ids=["integers beside nulls", "floats", "times", "flags", "large texts"],
)
def test_keys_of_one_kind_are_compared_whatever_their_width(
    tmp_path: Path, source: pa.Array, asked: list[Any], found: list[int | None]
) -> None:
    write_parquet(tmp_path / "keyed.parquet", {"user_id": source, "event_timestamp": times([0, 0]), "value": [10, 20]})
    schema = [Field(name="value", dtype=Int64)]
    store = open_store(tmp_path)
    view = FeatureView(name="keyed", entities=[user], ttl=timedelta(0), schema=schema, source=parquet("keyed.parquet"))
    store.apply([user, view])
    frame = pd.DataFrame({"user_id": asked, "event_timestamp": [second(5)] * 2})
    assert [row["value"] for row in rows_of(store, frame, ["keyed:value"])] == found


@pytest.mark.parametrize("asked", [[2.5], [2**53 + 2.0]], ids=["fraction", "too wide for a float"])
def test_keys_that_cannot_be_compared_exactly_are_refused(tmp_path: Path, asked: list[float]) -> None:
    columns = {"user_id": [2, 2**53 + 1], "event_timestamp": times([0, 0]), "value": [10, 20]}
    write_parquet(tmp_path / "keyed.parquet", columns)
    schema = [Field(name="value", dtype=Int64)]
    store = open_store(tmp_path)
    view = FeatureView(name="keyed", entities=[user], ttl=timedelta(0), schema=schema, source=parquet("keyed.parquet"))
    store.apply([user, view])
    with pytest.raises(ConfigError, match="'user_id' has type double, but feature view 'keyed'.*int64"):
        rows_of(store, pd.DataFrame({"user_id": asked, "event_timestamp": [second(5)]}), ["keyed:value"])


def test_dates_are_event_times_at_midnight(tmp_path: Path) -> None:
    dates = pa.array([second(0).date(), second(86_400).date()], pa.date32())
    write_parquet(tmp_path / "daily.parquet", {"user_id": ["a", "a"], "event_timestamp": dates, "value": [1, 2]})
    schema = [Field(name="value", dtype=Int64)]
    store = open_store(tmp_path)
    view = FeatureView(name="daily", entities=[user], ttl=timedelta(0), schema=schema, source=parquet("daily.parquet"))
    store.apply([user, view])
    found = rows_of(store, entity_frame(["a"] * 3, [-1, 86_399, 86_400]), ["daily:value"])
    assert [row["value"] for row in found] == [None, 1, 2]


def test_views_whose_keys_differ_in_type_have_no_common_window(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    views = []
    for name, keys in (("texts", ["1"]), ("numbers", [1])):
        columns = {"user_id": keys, "event_timestamp": times([1]), name: [1]}
        write_parquet(tmp_path / f"{name}.parquet", columns)
        schema = [Field(name=name, dtype=Int64)]
        source = parquet(f"{name}.parquet")
        views.append(FeatureView(name=name, entities=[user], ttl=timedelta(0), schema=schema, source=source))
    store.apply([user, *views])
    with pytest.raises(ConfigError, match="views texts, numbers have keys of different types"):
        rows_of(store, None, ["texts:texts", "numbers:numbers"], start_date=second(0), end_date=second(5))
