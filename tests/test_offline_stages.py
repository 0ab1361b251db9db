"""Views computed as-of from the raw behaviors and from one stored vector per partition."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.behavior import behavior_ids
from liber_feast.errors import ConfigError, DataSetError, InvalidBehaviors, LiberError
from liber_feast.offline_join import StageLimits
from liber_feast.offline_store import stage_limits
from tests.offline_repo import open_store, rows_of, second, times, write_parquet
from tests.stage_parts import (
    BEHAVIORS,
    ENCODED,
    ENGINE,
    FRAMES,
    LENGTH,
    MEMORY,
    SEQUENCE,
    VECTORS,
    WIDTH,
    Encoded,
    Rated,
    frame_of,
    open_stages,
    write_behaviors,
    write_vectors,
)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def store(repo: Path) -> FeatureStore:
    return open_stages(repo)


def micros(time: int) -> int:
    return round(second(time).timestamp() * 1_000_000)


def sequence_before(rows: list[Rated], key: str, time: int) -> dict[str, Any]:
    """The rule, row by row."""
    earlier: dict[str, Rated] = {}
    for row in sorted(rows, key=lambda row: (row.time, row.behavior_id)):
        if row.user_id == key and row.time < time:
            earlier.setdefault(row.behavior_id, row)
    last = list(earlier.values())[-LENGTH:]
    if not last:
        return dict.fromkeys(("item_ids", "ratings", "times", "behavior_count"))
    return {
        "item_ids": [row.item_id for row in last],
        "ratings": [row.rating for row in last],
        "times": [micros(row.time) for row in last],
        "behavior_count": len(earlier),
    }


def memory_at(rows: list[Encoded], key: str, time: int, *, cut: bool, ttl: int = 0) -> dict[str, Any]:
    """The rule, row by row."""
    nothing = dict.fromkeys(("vectors", "partition_count", "encoder_version"))
    visible = [row for row in rows if row.user_id == key and row.time <= time and (not cut or row.created <= time)]
    if not visible:
        return nothing
    newest = max(enumerate(visible), key=lambda pair: (pair[1].created, pair[0]))[1]
    by_index: dict[int, Encoded] = {}
    for row in sorted(visible, key=lambda row: row.created):
        if row.version == newest.version:
            by_index[row.index] = row
    last = [by_index[index] for index in sorted(by_index)][-MEMORY:]
    if ttl and last[-1].time < time - ttl:
        return nothing
    return {
        "vectors": [row.value for row in last for _ in range(WIDTH)],
        "partition_count": len(last),
        "encoder_version": newest.version,
    }


@settings(max_examples=60)
@given(rows=BEHAVIORS, pairs=FRAMES, unit=st.sampled_from(["s", "us", "ns"]))
def test_a_sequence_is_the_last_behaviors_strictly_before_the_sample(
    store: FeatureStore, repo: Path, rows: list[Rated], pairs: list[tuple[str, int]], unit: str
) -> None:
    write_behaviors(repo, rows, kind=pa.timestamp(unit, tz="UTC"))
    found = rows_of(store, frame_of(pairs), SEQUENCE)
    for row, (key, time) in zip(found, pairs, strict=True):
        assert {name: row[name] for name in ("item_ids", "ratings", "times", "behavior_count")} == sequence_before(
            rows, key, time
        )


@settings(max_examples=40)
@given(rows=BEHAVIORS, pairs=FRAMES)
def test_behaviors_without_ids_are_told_apart_by_the_hash_of_user_item_and_time(
    store: FeatureStore, repo: Path, rows: list[Rated], pairs: list[tuple[str, int]]
) -> None:
    write_behaviors(repo, rows, ids=False)
    ids = behavior_ids(
        pa.array([row.user_id for row in rows], pa.string()),
        pa.array([row.item_id for row in rows], pa.string()),
        times([row.time for row in rows]),
    ).to_pylist()
    hashed = [
        Rated(user_id=row.user_id, item_id=row.item_id, rating=row.rating, time=row.time, behavior_id=found)
        for row, found in zip(rows, ids, strict=True)
    ]
    found = rows_of(store, frame_of(pairs), SEQUENCE)
    for row, (key, time) in zip(found, pairs, strict=True):
        expected = sequence_before(hashed, key, time)
        assert (row["item_ids"], row["ratings"], row["behavior_count"]) == (
            expected["item_ids"],
            expected["ratings"],
            expected["behavior_count"],
        )


@settings(max_examples=40)
@given(rows=BEHAVIORS, late=BEHAVIORS, pairs=FRAMES)
def test_nothing_at_or_after_a_sample_changes_its_sequence(
    store: FeatureStore, repo: Path, rows: list[Rated], late: list[Rated], pairs: list[tuple[str, int]]
) -> None:
    write_behaviors(repo, rows)
    before = rows_of(store, frame_of(pairs), SEQUENCE)
    first = min((time for _, time in pairs), default=0)
    write_behaviors(repo, [*rows, *(row for row in late if row.time >= first)])
    after = rows_of(store, frame_of(pairs), SEQUENCE)
    changed = [pair for pair, old, new in zip(pairs, before, after, strict=True) if old != new]
    assert all(time > first for _, time in changed)


@settings(max_examples=60)
@given(rows=ENCODED, pairs=FRAMES, cut=st.booleans())
def test_a_memory_is_the_last_partitions_of_one_encoder_version_sealed_by_then(
    store: FeatureStore, repo: Path, rows: list[Encoded], pairs: list[tuple[str, int]], cut: bool
) -> None:
    write_vectors(repo, rows)
    features = [*VECTORS, *(ref.replace("long_term", "fresh") for ref in VECTORS)]
    found = rows_of(store, frame_of(pairs), features, filter_by_created_timestamp=cut, full_feature_names=True)
    for row, (key, time) in zip(found, pairs, strict=True):
        for view, ttl in (("long_term_memory", 0), ("fresh_memory", 2)):
            expected = memory_at(rows, key, time, cut=cut, ttl=ttl)
            assert {name: row[f"{view}__{name}"] for name in expected} == expected


@settings(max_examples=40)
@given(rows=ENCODED, late=ENCODED, pairs=FRAMES, cut=st.booleans())
def test_nothing_after_a_sample_changes_its_memory(
    store: FeatureStore, repo: Path, rows: list[Encoded], late: list[Encoded], pairs: list[tuple[str, int]], cut: bool
) -> None:
    write_vectors(repo, rows)
    before = rows_of(store, frame_of(pairs), VECTORS, filter_by_created_timestamp=cut)
    last = max((time for _, time in pairs), default=0)
    write_vectors(repo, [*rows, *(row for row in late if (row.created if cut else row.time) > last)])
    assert rows_of(store, frame_of(pairs), VECTORS, filter_by_created_timestamp=cut) == before


def test_a_partition_sealed_a_microsecond_after_a_sample_is_not_in_its_memory(store: FeatureStore, repo: Path) -> None:
    sealed = second(5) + timedelta(microseconds=1)
    write_parquet(
        repo / "vectors.parquet",
        {
            "user_id": ["a"],
            "partition_index": [0],
            "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
            "encoder_version": ["v1"],
            "event_timestamp": pa.array([sealed], pa.timestamp("us", tz="UTC")),
            "created_timestamp": times([0]),
        },
    )
    moments = pd.to_datetime([second(5), sealed - timedelta(microseconds=1), sealed], utc=True).as_unit("ns")
    frame = pd.DataFrame({"user_id": ["a"] * 3, "event_timestamp": moments + pd.to_timedelta([0, 999, 0], unit="ns")})
    assert [row["partition_count"] for row in rows_of(store, frame, VECTORS)] == [None, None, 1]


def test_a_sample_a_nanosecond_after_a_behavior_sees_it(store: FeatureStore, repo: Path) -> None:
    write_behaviors(repo, [Rated(user_id="a", item_id="i", rating=1.0, time=5, behavior_id="0")])
    moments = pd.to_datetime([second(5)] * 3, utc=True).as_unit("ns") + pd.to_timedelta([-1, 0, 1], unit="ns")
    frame = pd.DataFrame({"user_id": ["a"] * 3, "event_timestamp": moments})
    assert [row["item_ids"] for row in rows_of(store, frame, SEQUENCE)] == [None, None, ["i"]]


def test_without_a_frame_a_sequence_reaches_back_before_the_window(store: FeatureStore, repo: Path) -> None:
    write_behaviors(
        repo, [Rated(user_id="a", item_id=name, rating=1.0, time=at, behavior_id=name) for at, name in enumerate("ijk")]
    )
    found = rows_of(store, None, SEQUENCE, start_date=second(1), end_date=second(2))
    assert [(row["event_timestamp"], row["item_ids"]) for row in found] == [(second(1), ["i"]), (second(2), ["i", "j"])]


def test_vectors_of_several_widths_are_joined_as_they_are(store: FeatureStore, repo: Path) -> None:
    write_parquet(
        repo / "vectors.parquet",
        {
            "user_id": ["a", "a", "a"],
            "partition_index": [0, 1, 2],
            "vector": pa.array([[9.0], [1.0, 2.0], [3.0]], pa.list_(pa.float32())),
            "encoder_version": ["v1"] * 3,
            "event_timestamp": times([0, 1, 2]),
            "created_timestamp": times([0, 1, 2]),
        },
    )
    assert rows_of(store, frame_of([("a", 5)]), VECTORS)[0]["vectors"] == [1.0, 2.0, 3.0]


def test_the_lists_are_of_the_declared_types(store: FeatureStore, repo: Path) -> None:
    write_behaviors(repo, [])
    write_vectors(repo, [])
    table = store.get_historical_features(frame_of([("a", 1)]), [*SEQUENCE, *VECTORS]).to_arrow()
    types = [str(table.schema.field(ref.split(":")[1]).type) for ref in (*SEQUENCE, *VECTORS)]
    assert types == [
        "list<item: string>",
        "list<item: double>",
        "list<item: int64>",
        "int64",
        "list<item: float>",
        "int64",
        "string",
    ]


BROKEN_PARTITIONS = [
    pytest.param(broken, error, message, id=message.split(";")[0])
    for broken, error, message in (
        (
            {"partition_index": pa.array([0, None])},
            DataSetError,
            "column 'partition_index' is null in 1 rows that have",
        ),
        (
            {"encoder_version": pa.array([None, None], pa.string())},
            DataSetError,
            "column 'encoder_version' is null in 2",
        ),
        (
            {"partition_index": pa.array(["0", "1"])},
            ConfigError,
            "column 'partition_index' has type string; it must be",
        ),
        (
            {"partition_index": pa.array([0.0, 1.0])},
            ConfigError,
            "column 'partition_index' has type double; it must be",
        ),
        ({"vector": pa.array([1.0, 2.0])}, ConfigError, "column 'vector' has type double; it must be a list of floats"),
        (
            {"vector": pa.array([["1"], ["2"]])},
            ConfigError,
            "column 'vector' has type list<.*: string>; it must be a list of floats",
        ),
    )
]


def write_partitions(repo: Path, **columns: pa.Array) -> None:
    """Two partitions of user a, sealed at seconds 0 and 1, with some columns exchanged."""
    good = {
        "user_id": ["a", "a"],
        "partition_index": [0, 1],
        "vector": pa.array([[1.0], [2.0]], pa.list_(pa.float32())),
        "encoder_version": ["v1", "v1"],
        "event_timestamp": times([0, 1]),
        "created_timestamp": times([0, 1]),
    }
    write_parquet(repo / "vectors.parquet", good | columns)


@pytest.mark.parametrize(("broken", "error", "message"), BROKEN_PARTITIONS)
def test_partitions_that_cannot_be_told_apart_are_refused(
    store: FeatureStore, repo: Path, broken: dict[str, pa.Array], error: type[LiberError], message: str
) -> None:
    write_partitions(repo, **broken)
    with pytest.raises(error, match=f"^feature view 'long_term_memory': {message}") as caught:
        rows_of(store, frame_of([("a", 5)]), VECTORS)
    assert "\n" not in str(caught.value)


def test_a_partition_without_a_vector_needs_no_index_or_version(store: FeatureStore, repo: Path) -> None:
    vector = pa.array([[1.0], None], pa.list_(pa.float32()))
    write_partitions(repo, vector=vector, partition_index=pa.array([0, None]), encoder_version=pa.array(["v1", None]))
    assert [row["vectors"] for row in rows_of(store, frame_of([("a", 5)]), VECTORS)] == [[1.0]]


def test_an_unknown_feature_of_a_computed_view_is_named(store: FeatureStore, repo: Path) -> None:
    write_behaviors(repo, [])
    with pytest.raises(ConfigError, match="'wrong'.*item_ids, .*there is no 'prices'"):
        rows_of(store, frame_of([("a", 1)]), ["wrong:prices"])


def test_null_behavior_ids_are_refused(store: FeatureStore, repo: Path) -> None:
    columns = {"item_id": ["i"], "rating": [1.0], "behavior_id": pa.array([None], pa.string())}
    write_parquet(repo / "behaviors.parquet", {"user_id": ["a"], "event_timestamp": times([0]), **columns})
    with pytest.raises(InvalidBehaviors, match="'behavior_id' is null in 1 rows"):
        rows_of(store, frame_of([("a", 1)]), SEQUENCE)


def write_two_behaviors(repo: Path, **columns: Any) -> None:
    """Two behaviors of user a at seconds 0 and 1, with some columns added or exchanged."""
    good = {"user_id": ["a", "a"], "event_timestamp": times([0, 1]), "item_id": ["i", "j"], "rating": [1.0, 2.0]}
    write_parquet(repo / "behaviors.parquet", good | columns)


@pytest.mark.parametrize("ids", [{}, {"behavior_id": ["0", "1"]}], ids=["hashed ids", "given ids"])
def test_null_items_are_refused(store: FeatureStore, repo: Path, ids: dict[str, list[str]]) -> None:
    write_two_behaviors(repo, item_id=["i", None], **ids)
    with pytest.raises(InvalidBehaviors, match="^feature view 'behavior_sequence': column 'item_id' is null in 1 rows"):
        rows_of(store, frame_of([("a", 2)]), SEQUENCE)


def test_a_null_rating_is_null_in_the_sequence(store: FeatureStore, repo: Path) -> None:
    write_two_behaviors(repo, rating=[None, 2.0])
    assert pd.isna(rows_of(store, frame_of([("a", 2)]), SEQUENCE)[0]["ratings"][0])


def test_behaviors_without_a_user_or_a_time_are_passed_over(store: FeatureStore, repo: Path) -> None:
    write_two_behaviors(repo, user_id=["a", None], item_id=["i", None])
    assert rows_of(store, frame_of([("a", 2)]), SEQUENCE)[0]["item_ids"] == ["i"]
    write_two_behaviors(repo, event_timestamp=times([0, None]), item_id=["i", None])
    assert rows_of(store, frame_of([("a", 2)]), SEQUENCE)[0]["item_ids"] == ["i"]


@pytest.mark.parametrize("ids", [[[1], [2]], [b"\xff", b"x"]], ids=["lists", "bytes that are no text"])
def test_behavior_ids_that_make_no_texts_are_refused(store: FeatureStore, repo: Path, ids: list[Any]) -> None:
    write_two_behaviors(repo, behavior_id=ids)
    with pytest.raises(ConfigError, match="column 'behavior_id' has type .*Write the ids as texts or") as caught:
        rows_of(store, frame_of([("a", 2)]), SEQUENCE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [{"sequence": {"length": 0}}, {"memory_window": "many"}], ids=["zero", "text"])
def test_a_length_that_is_no_number_above_zero_is_refused(tmp_path: Path, block: dict[str, Any]) -> None:
    config = open_store(tmp_path).config
    config.batch_engine_config = {"type": ENGINE["type"], **block}
    with pytest.raises(ConfigError, match="must be a whole number above 0"):
        stage_limits(config)


def test_without_an_engine_block_the_lengths_are_the_defaults(tmp_path: Path) -> None:
    assert stage_limits(open_store(tmp_path).config) == StageLimits(sequence_length=50, memory_window=50)


def test_long_histories_equal_the_rule(store: FeatureStore, repo: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        Rated(user_id=f"u{u}", item_id=f"i{i}", rating=1.0, time=int(at), behavior_id=f"{place:06d}")
        for place, (u, i, at) in enumerate(draw.integers((0, 0, 0), (20, 50, 1_000), (3_000, 3)).tolist())
    ]
    write_behaviors(repo, rows)
    pairs = [(f"u{u}", int(at)) for u, at in draw.integers((0, 0), (21, 1_001), (200, 2)).tolist()]
    for row, (key, time) in zip(rows_of(store, frame_of(pairs), SEQUENCE), pairs, strict=True):
        assert isinstance(row["event_timestamp"], datetime)
        assert {name: row[name] for name in ("item_ids", "times", "behavior_count")} == {
            name: value for name, value in sequence_before(rows, key, time).items() if name != "ratings"
        }
