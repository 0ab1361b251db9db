"""Behaviors and partition vectors in a small feature repo, and the views that are computed from them."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import BatchFeatureView, FeatureStore, FeatureView, Field
from feast.types import Array, Float32, Float64, Int64, String
from hypothesis import strategies as st

from tests.offline_repo import LIBER, MICROSECONDS, entity_frame, open_store, parquet, times, user, write_parquet

LENGTH, MEMORY, WIDTH = 3, 2, 2
ENGINE = {"type": "liber_feast.engine.LiberComputeEngine", "sequence": {"length": LENGTH}, "memory_window": MEMORY}
SEQUENCE = [f"behavior_sequence:{name}" for name in ("item_ids", "ratings", "times", "behavior_count")]
VECTORS = [f"long_term_memory:{name}" for name in ("vectors", "partition_count", "encoder_version")]


@dataclass(frozen=True, kw_only=True)
class Rated:
    user_id: str
    item_id: str
    rating: float
    time: int
    behavior_id: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    user_id: str
    index: int
    value: float
    version: str
    time: int
    created: int


def open_stages(root: Path, *, offline: str = LIBER) -> FeatureStore:
    store = open_store(root, offline=offline, batch_engine=ENGINE)
    log = parquet("behaviors.parquet", name="log")
    table = parquet("vectors.parquet", name="vectors", created_timestamp_column="created_timestamp")
    behaviors = FeatureView(
        name="behaviors",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name="item_id", dtype=String), Field(name="rating", dtype=Float64)],
        source=log,
        tags={"liber.stage": "behaviors"},
    )
    sequences = [
        BatchFeatureView(
            name=name,
            entities=[user],
            ttl=timedelta(seconds=ttl),
            schema=[
                Field(name="item_ids", dtype=Array(String)),
                Field(name="ratings", dtype=Array(Float64)),
                Field(name="times", dtype=Array(Int64)),
                Field(name="behavior_count", dtype=Int64),
            ],
            source=[behaviors],
            sink_source=log,
            tags={"liber.stage": "sequence"},
        )
        for name, ttl in (("behavior_sequence", 0), ("fresh_sequence", 2))
    ]
    memories = [
        BatchFeatureView(
            name=name,
            entities=[user],
            ttl=timedelta(seconds=ttl),
            schema=[
                Field(name="vectors", dtype=Array(Float32)),
                Field(name="partition_count", dtype=Int64),
                Field(name="encoder_version", dtype=String),
            ],
            source=[behaviors],
            sink_source=table,
            tags={"liber.stage": "vector"},
        )
        for name, ttl in (("long_term_memory", 0), ("fresh_memory", 2))
    ]
    wrong = BatchFeatureView(
        name="wrong",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name="prices", dtype=Array(Float64))],
        source=[behaviors],
        sink_source=log,
        tags={"liber.stage": "sequence"},
    )
    store.apply([user, behaviors, *sequences, *memories, wrong])
    return store


def write_behaviors(repo: Path, rows: list[Rated], *, kind: pa.DataType = MICROSECONDS, ids: bool = True) -> None:
    columns: dict[str, Any] = {
        "user_id": pa.array([row.user_id for row in rows], pa.string()),
        "item_id": pa.array([row.item_id for row in rows], pa.string()),
        "rating": pa.array([row.rating for row in rows], pa.float64()),
        "event_timestamp": times([row.time for row in rows], kind),
    }
    if ids:
        columns["behavior_id"] = pa.array([row.behavior_id for row in rows], pa.string())
    write_parquet(repo / "behaviors.parquet", columns)


def write_vectors(repo: Path, rows: list[Encoded]) -> None:
    write_parquet(
        repo / "vectors.parquet",
        {
            "user_id": pa.array([row.user_id for row in rows], pa.string()),
            "partition_index": pa.array([row.index for row in rows], pa.int64()),
            "vector": pa.array([[row.value] * WIDTH for row in rows], pa.list_(pa.float32())),
            "encoder_version": pa.array([row.version for row in rows], pa.string()),
            "event_timestamp": times([row.time for row in rows]),
            "created_timestamp": times([row.created for row in rows]),
        },
    )


USERS = st.sampled_from(["a", "b"])
SECONDS = st.integers(0, 6)
BEHAVIORS = st.lists(
    st.builds(
        Rated,
        user_id=USERS,
        item_id=st.sampled_from(["i", "j", "k"]),
        rating=st.sampled_from([1.0, 4.5]),
        time=SECONDS,
        behavior_id=st.sampled_from("0123456789"),
    ),
    max_size=14,
)
ENCODED = st.lists(
    st.builds(
        Encoded,
        user_id=USERS,
        index=st.integers(0, 3),
        value=st.integers(0, 9).map(float),
        version=st.sampled_from(["v1", "v2"]),
        time=SECONDS,
        created=SECONDS,
    ),
    max_size=12,
)
FRAMES = st.lists(st.tuples(USERS | st.just("unknown"), st.integers(-1, 8)), max_size=8)


def frame_of(pairs: list[tuple[str, int]], *, unit: str = "ns") -> pd.DataFrame:
    frame = entity_frame([key for key, _ in pairs], [time for _, time in pairs])
    frame["event_timestamp"] = frame["event_timestamp"].astype(f"datetime64[{unit}, UTC]")
    return frame
