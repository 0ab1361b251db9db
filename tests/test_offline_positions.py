"""Positions of windows: every window equals the lists that a retrieval returns for the same entity rows."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import BatchFeatureView, FeatureStore, Field
from feast.types import Array, Float32, String
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.errors import ConfigError, DataSetError, InvalidBehaviors, LiberError, StoreNotReady
from liber_feast.offline_positions import MemoryPositions, SequencePositions, memory_positions, sequence_positions
from tests.offline_repo import open_store, parquet, rows_of, times, user, write_parquet
from tests.stage_parts import (
    BEHAVIORS,
    ENCODED,
    FRAMES,
    LENGTH,
    WIDTH,
    Encoded,
    Rated,
    frame_of,
    open_stages,
    write_behaviors,
    write_vectors,
)
from tests.test_offline_stages import BROKEN_PARTITIONS, write_partitions

SEQUENCE_FEATURES = ("item_ids", "ratings", "times", "behavior_count")
MEMORY_FEATURES = ("vectors", "partition_count", "encoder_version")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("positions")


@pytest.fixture(scope="module")
def store(repo: Path) -> FeatureStore:
    return open_stages(repo)


def expanded(store: FeatureStore, frame: pd.DataFrame, view: str, features: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = rows_of(store, frame, [f"{view}:{name}" for name in features])
    return [{name: row[name] for name in features} for row in rows]


def sequences_of(found: SequencePositions) -> list[dict[str, Any]]:
    columns = (found.item_ids.to_pylist(), found.ratings.to_pylist(), found.times.tolist())
    rows = []
    for start, length, count in zip(found.starts, found.lengths, found.counts, strict=True):
        window = slice(start, start + length)
        values = [*(column[window] for column in columns), int(count)] if length else [None] * 4
        rows.append(dict(zip(SEQUENCE_FEATURES, values, strict=True)))
        assert length or (start, count) == (0, 0)
    return rows


def memories_of(found: MemoryPositions) -> list[dict[str, Any]]:
    rows = []
    versions = found.encoder_versions.to_pylist()
    for start, length, count, version in zip(found.starts, found.lengths, found.counts, versions, strict=True):
        vectors = found.vectors[start : start + length].reshape(-1).tolist()
        values = [vectors, int(count), version] if length else [None] * 3
        rows.append(dict(zip(MEMORY_FEATURES, values, strict=True)))
        assert length or (start, count, version) == (0, 0, None)
    return rows


def covered(found: SequencePositions | MemoryPositions) -> set[int]:
    pairs = zip(found.starts, found.lengths, strict=True)
    return {place for start, length in pairs for place in range(start, start + length)}


@settings(max_examples=30)
@given(rows=BEHAVIORS, pairs=FRAMES, unit=st.sampled_from(["s", "us", "ns"]), ids=st.booleans())
@pytest.mark.parametrize("view", ["behavior_sequence", "fresh_sequence"])
def test_every_window_of_behaviors_is_the_sequence_of_the_retrieval(
    store: FeatureStore,
    repo: Path,
    view: str,
    rows: list[Rated],
    pairs: list[tuple[str, int]],
    unit: str,
    ids: bool,
) -> None:
    write_behaviors(repo, rows, kind=pa.timestamp(unit, tz="UTC"), ids=ids)
    frame = frame_of(pairs)
    found = sequence_positions(store, view_name=view, entity_frame=frame)
    assert sequences_of(found) == expanded(store, frame, view, SEQUENCE_FEATURES)
    assert max(found.lengths, default=0) <= LENGTH
    assert [column.dtype for column in (found.starts, found.lengths, found.counts, found.times)] == [np.int64] * 4


@settings(max_examples=30)
@given(rows=BEHAVIORS, pairs=FRAMES)
def test_a_behavior_is_there_once_however_many_sequences_hold_it(
    store: FeatureStore, repo: Path, rows: list[Rated], pairs: list[tuple[str, int]]
) -> None:
    write_behaviors(repo, rows)
    found = sequence_positions(store, view_name="behavior_sequence", entity_frame=frame_of([*pairs, *pairs]))
    assert len(found.item_ids) == len(found.ratings) == len(found.times) <= len(rows)
    assert covered(found) == set(range(len(found.times)))


@settings(max_examples=30)
@given(rows=ENCODED, pairs=FRAMES)
@pytest.mark.parametrize("view", ["long_term_memory", "fresh_memory"])
def test_every_window_of_partitions_is_the_memory_of_the_retrieval(
    store: FeatureStore, repo: Path, view: str, rows: list[Encoded], pairs: list[tuple[str, int]]
) -> None:
    write_vectors(repo, rows)
    frame = frame_of(pairs)
    found = memory_positions(store, view_name=view, entity_frame=frame)
    assert memories_of(found) == expanded(store, frame, view, MEMORY_FEATURES)
    assert covered(found) == set(range(len(found.vectors)))
    assert found.vectors.dtype == np.float32


@settings(max_examples=25)
@given(rows=ENCODED, pairs=FRAMES)
def test_a_partition_has_the_number_it_has_for_its_user(
    store: FeatureStore, repo: Path, rows: list[Encoded], pairs: list[tuple[str, int]]
) -> None:
    write_vectors(repo, rows)
    found = memory_positions(store, view_name="long_term_memory", entity_frame=frame_of(pairs))
    known = {(row.user_id, row.index, row.value) for row in rows}
    for (key, _), start, length in zip(pairs, found.starts, found.lengths, strict=True):
        window = slice(start, start + length)
        indexes, values = found.partition_index[window].tolist(), found.vectors[window, :1].reshape(-1).tolist()
        assert indexes == sorted(set(indexes))
        assert {(key, index, value) for index, value in zip(indexes, values, strict=True)} <= known


def test_rows_of_users_outside_the_frame_are_passed_over(store: FeatureStore, repo: Path) -> None:
    draw = np.random.default_rng(0).integers((0, 0), (600, 9), (2_000, 2)).tolist()
    write_behaviors(
        repo,
        [
            Rated(user_id=f"u{key}", item_id=f"i{place}", rating=float(place), time=time, behavior_id=str(place))
            for place, (key, time) in enumerate(draw)
        ],
    )
    write_vectors(
        repo,
        [
            Encoded(user_id=f"u{key}", index=index, value=float(index), version="v1", time=time, created=time)
            for index, (key, time) in enumerate(draw)
        ],
    )
    frame = frame_of([(f"u{key}", 8) for key in range(0, 600, 2)])
    sequences = sequence_positions(store, view_name="behavior_sequence", entity_frame=frame)
    memories = memory_positions(store, view_name="long_term_memory", entity_frame=frame)
    assert sequences_of(sequences) == expanded(store, frame, "behavior_sequence", SEQUENCE_FEATURES)
    assert memories_of(memories) == expanded(store, frame, "long_term_memory", MEMORY_FEATURES)


def test_partitions_sealed_in_order_are_there_once(store: FeatureStore, repo: Path) -> None:
    sealed = [
        Encoded(user_id=key, index=index, value=float(index), version="v1", time=index, created=9)
        for key in "ab"
        for index in range(6)
    ]
    write_vectors(repo, sealed)
    pairs = [(key, time) for time in range(7) for key in "ab"]
    found = memory_positions(store, view_name="long_term_memory", entity_frame=frame_of(pairs))
    assert found.vectors.shape == (12, WIDTH)
    assert found.partition_index.tolist() == [*range(6), *range(6)]


def test_a_partition_sealed_late_repeats_the_partitions_of_its_user_alone(store: FeatureStore, repo: Path) -> None:
    sealed = [
        Encoded(user_id=key, index=index, value=float(index), version="v1", time=time, created=9)
        for key, seals in (("a", [0, 1, 2, 3]), ("b", [0, 2, 1, 3]), ("c", [1, 2, 3, 4]))
        for index, time in enumerate(seals)
    ]
    write_vectors(repo, sealed)
    frame = frame_of([(key, time) for time in range(6) for key in "abc"])
    found = memory_positions(store, view_name="long_term_memory", entity_frame=frame)
    assert memories_of(found) == expanded(store, frame, "long_term_memory", MEMORY_FEATURES)
    own = found.lengths.reshape(-1, 3)[:, 1].sum()
    assert found.partition_index[:8].tolist() == [*range(4), *range(4)]
    assert len(found.vectors) == 8 + own


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_an_arrow_frame_gives_what_the_pandas_frame_gives(store: FeatureStore, repo: Path, unit: str) -> None:
    write_behaviors(repo, [Rated(user_id="a", item_id="i", rating=1.0, time=1, behavior_id="0")])
    frame = frame_of([("b", 3), ("a", 3), ("a", 1)], unit=unit)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pair = [sequence_positions(store, view_name="behavior_sequence", entity_frame=rows) for rows in (frame, table)]
    assert sequences_of(pair[0]) == sequences_of(pair[1])
    assert pair[0].lengths.tolist() == [0, 1, 0]


def test_an_empty_frame_has_no_windows_and_no_values(store: FeatureStore, repo: Path) -> None:
    write_behaviors(repo, [Rated(user_id="a", item_id="i", rating=1.0, time=1, behavior_id="0")])
    write_vectors(repo, [Encoded(user_id="a", index=0, value=1.0, version="v1", time=0, created=0)])
    sequences = sequence_positions(store, view_name="behavior_sequence", entity_frame=frame_of([]))
    memories = memory_positions(store, view_name="long_term_memory", entity_frame=frame_of([]))
    assert (len(sequences.starts), len(sequences.item_ids), sequences.item_ids.type) == (0, 0, pa.string())
    assert (len(memories.starts), memories.vectors.shape, len(memories.encoder_versions)) == (0, (0, 0), 0)


def mapped_store(root: Path) -> FeatureStore:
    """A store whose columns have names of their own, which the source maps to ours."""
    store = open_store(root)
    features = {
        "sequence": [Field(name="item_ids", dtype=Array(String))],
        "vector": [Field(name="vectors", dtype=Array(Float32))],
    }
    mappings = {
        "sequence": {"who": "user_id", "what": "item_id", "stars": "rating", "key": "behavior_id"},
        "vector": {"who": "user_id", "numbers": "vector", "place": "partition_index", "model": "encoder_version"},
    }
    views = [
        BatchFeatureView(
            name=stage,
            entities=[user],
            ttl=timedelta(0),
            schema=features[stage],
            source=parquet(f"{stage}.parquet", name=f"source of {stage}", field_mapping=mapping),
            tags={"liber.stage": stage},
        )
        for stage, mapping in mappings.items()
    ]
    store.apply([user, *views])
    return store


def test_columns_are_found_through_the_field_mapping(tmp_path: Path) -> None:
    common = {"who": ["a", "a"], "event_timestamp": times([1, 2])}
    write_parquet(tmp_path / "sequence.parquet", {**common, "what": ["i", "j"], "stars": [1.0, 2.0], "key": ["0", "1"]})
    vectors = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    write_parquet(tmp_path / "vector.parquet", {**common, "numbers": vectors, "place": [0, 1], "model": ["v1", "v1"]})
    store = mapped_store(tmp_path)
    sequences = sequence_positions(store, view_name="sequence", entity_frame=frame_of([("a", 3)]))
    memories = memory_positions(store, view_name="vector", entity_frame=frame_of([("a", 3)]))
    assert (sequences.item_ids.to_pylist(), sequences.ratings.to_pylist()) == (["i", "j"], [1.0, 2.0])
    assert (memories.vectors.tolist(), memories.encoder_versions.to_pylist()) == ([[1.0], [2.0]], ["v1"])


def write_two_vectors(repo: Path, vectors: list[list[float | None]], *, versions: tuple[str, str]) -> None:
    """Two partitions of user a, sealed at seconds 0 and 1."""
    write_parquet(
        repo / "vectors.parquet",
        {
            "user_id": ["a", "a"],
            "partition_index": [0, 1],
            "vector": pa.array(vectors, pa.list_(pa.float32())),
            "encoder_version": list(versions),
            "event_timestamp": times([0, 1]),
            "created_timestamp": times([0, 1]),
        },
    )


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0], [1.0, 2.0]], "widths 1, 2, so they are of several encoders"),
        ([[], []], "column 'vector' has vectors without values. "),
        ([[1.0], [None]], "a value of its vectors is null"),
        ([[1.0], [float("nan")]], "a value of its vectors is not finite"),
        ([[float("inf")], [1.0]], "a value of its vectors is not finite"),
    ],
    ids=["widths", "no width", "null", "nan", "infinite"],
)
def test_vectors_that_make_no_table_are_refused(
    store: FeatureStore, repo: Path, vectors: list[list[float | None]], message: str
) -> None:
    write_two_vectors(repo, vectors, versions=("v1", "v1"))
    with pytest.raises(DataSetError, match=f"^feature view 'long_term_memory': .*{message}") as caught:
        memory_positions(store, view_name="long_term_memory", entity_frame=frame_of([("a", 5)]))
    assert "\n" not in str(caught.value)


def test_vectors_of_another_encoder_that_no_sample_sees_do_not_matter(store: FeatureStore, repo: Path) -> None:
    write_two_vectors(repo, [[1.0], [2.0, 3.0]], versions=("old", "new"))
    found = memory_positions(store, view_name="long_term_memory", entity_frame=frame_of([("a", 5)]))
    assert (found.vectors.tolist(), found.encoder_versions.to_pylist()) == ([[2.0, 3.0]], ["new"])


@pytest.mark.parametrize(("broken", "error", "message"), BROKEN_PARTITIONS)
def test_partitions_that_cannot_be_told_apart_are_refused(
    store: FeatureStore, repo: Path, broken: dict[str, pa.Array], error: type[LiberError], message: str
) -> None:
    write_partitions(repo, **broken)
    with pytest.raises(error, match=f"^feature view 'long_term_memory': {message}") as caught:
        memory_positions(store, view_name="long_term_memory", entity_frame=frame_of([("a", 5)]))
    assert "\n" not in str(caught.value)


def test_null_items_are_refused(store: FeatureStore, repo: Path) -> None:
    columns = {"item_id": ["i", None], "rating": [1.0, 2.0], "behavior_id": ["0", "1"]}
    write_parquet(repo / "behaviors.parquet", {"user_id": ["a", "a"], "event_timestamp": times([0, 1]), **columns})
    with pytest.raises(InvalidBehaviors, match="^feature view 'behavior_sequence': column 'item_id' is null in 1 rows"):
        sequence_positions(store, view_name="behavior_sequence", entity_frame=frame_of([("a", 2)]))


def test_null_behavior_ids_are_refused(store: FeatureStore, repo: Path) -> None:
    columns = {"item_id": ["i"], "rating": [1.0], "behavior_id": pa.array([None], pa.string())}
    write_parquet(repo / "behaviors.parquet", {"user_id": ["a"], "event_timestamp": times([0]), **columns})
    with pytest.raises(InvalidBehaviors, match="'behavior_id' is null in 1 rows"):
        sequence_positions(store, view_name="behavior_sequence", entity_frame=frame_of([("a", 1)]))


@pytest.mark.parametrize(
    ("view", "error", "message"),
    [
        ("nowhere", StoreNotReady, "there is none of this name in project 'small'"),
        ("behaviors", ConfigError, "its tag liber.stage is 'behaviors', not 'sequence'"),
        ("long_term_memory", ConfigError, "its tag liber.stage is 'vector', not 'sequence'"),
    ],
)
def test_a_view_that_has_no_sequences_is_refused(
    store: FeatureStore, view: str, error: type[LiberError], message: str
) -> None:
    with pytest.raises(error, match=f"^feature view '{view}': {message}") as caught:
        sequence_positions(store, view_name=view, entity_frame=frame_of([]))
    assert "\n" not in str(caught.value)


def test_a_view_that_has_no_memories_is_refused(store: FeatureStore) -> None:
    with pytest.raises(ConfigError, match="'behavior_sequence': its tag liber.stage is 'sequence', not 'vector'"):
        memory_positions(store, view_name="behavior_sequence", entity_frame=frame_of([]))


def test_another_offline_store_is_refused(tmp_path: Path) -> None:
    store = open_stages(tmp_path, offline="dask")
    with pytest.raises(ConfigError, match="'behavior_sequence': the offline store is DaskOfflineStore"):
        sequence_positions(store, view_name="behavior_sequence", entity_frame=frame_of([]))


def test_a_frame_without_the_key_is_refused(store: FeatureStore) -> None:
    with pytest.raises(ConfigError, match="'user_id' is missing; feature view 'long_term_memory' is joined on it"):
        memory_positions(store, view_name="long_term_memory", entity_frame=frame_of([]).drop(columns="user_id"))
