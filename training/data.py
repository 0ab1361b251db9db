"""The samples: every behavior with the features that were known just before it, and its label."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import FeatureService, FeatureStore, FeatureView

from liber_feast.behavior import (
    BEHAVIOR_ID,
    EVENT_TIME,
    ITEM,
    RATING,
    TIMESTAMP,
    USER,
    RatingScale,
    check_behaviors,
)
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.errors import ConfigError, DataSetError, StoreNotReady
from liber_feast.offline_read import locate, open_snapshot
from liber_feast.partition_vectors import (
    ONE_ENCODER,
    REBUILD,
    VECTORS,
    PartitionVectors,
    concatenate,
    read_partition_vectors,
)
from liber_feast.ragged import list_values
from liber_feast.repo import feast_errors, open_applied_store

Features = Literal["baseline", "liber"]

TRAINING_SERVICE: dict[Features, str] = {"baseline": "ctr_baseline", "liber": "ctr_training"}
SERVING_SERVICE: dict[Features, str] = {"baseline": "ctr_baseline", "liber": "ctr_serving"}
BEHAVIORS, USER_PROFILE, ITEM_ATTRIBUTES = "behaviors", "user_profile", "item_attributes"
PARTITION_COUNT, ENCODER_VERSION = "partition_count", "encoder_version"
CHUNK_ROWS = 50_000
"""Samples joined at once; bounds the memory that the lists of vectors take before they are kept once each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """Samples in order of time. `table` holds keys, rating and features, without the partition vectors."""

    table: pa.Table
    features: Features
    like_above: float
    user_columns: tuple[str, ...]
    item_columns: tuple[str, ...]
    catalog: pa.Table | None
    """The attributes of every item of the store by item_id; None: those of the samples are all."""
    vectors: PartitionVectors | None = None
    """With LIBER, the partition vectors of every sample."""
    encoder_version: str | None = None

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        liked: npt.NDArray[np.bool_] = self.table[RATING].to_numpy() > self.like_above
        return liked

    @property
    def times(self) -> npt.NDArray[np.int64]:
        """Event times, microseconds since 1970 UTC."""
        micros: npt.NDArray[np.int64] = self.table[EVENT_TIME].cast(TIMESTAMP).cast(pa.int64()).to_numpy()
        return micros

    @property
    def fingerprint(self) -> str:
        """Hash of who rated what, how and when: the same behaviors give the same one."""
        digest = hashlib.sha256()
        for row in (self.table[name].cast(pa.string()).to_pylist() for name in (USER, ITEM)):
            digest.update("\x1f".join(row).encode() + b"\x1e")
        digest.update(np.ascontiguousarray(self.table[RATING].to_numpy(), np.float64).tobytes())
        digest.update(np.ascontiguousarray(self.times).tobytes())
        return digest.hexdigest()[:16]


def load_samples(repo: Path, *, features: Features, chunk_rows: int = CHUNK_ROWS) -> Samples:
    """Return every behavior of the feature repo as a sample, with the features of its service as of its time.

    Raises:
        StoreNotReady: no feature repo, one that was never applied, loaded or, with LIBER, materialized.
        ConfigError: the store lacks a feature that training needs.
        InvalidBehaviors: behaviors without ratings, which are the labels, or with other faults.
        DataSetError: vectors that cannot be used.
    """
    store = open_applied_store(repo)
    with feast_errors(repo):
        service = store.get_feature_service(TRAINING_SERVICE[features])
        behaviors = _read_view(store, BEHAVIORS)
        catalog = _read_view(store, ITEM_ATTRIBUTES)
    if not behaviors.num_rows:
        raise StoreNotReady(f"{repo} holds no behaviors. Run `liber load DATA --repo {repo}`.")
    scale = _rating_scale(store)
    checked = check_behaviors(behaviors, scale=scale, now=datetime.now(UTC), source=f"{repo}, view {BEHAVIORS!r}")

    def join(rows: pa.Table) -> pa.Table:
        with feast_errors(repo):
            return store.get_historical_features(entity_df=rows.to_pandas(), features=service).to_arrow()

    return build_samples(
        checked.table,
        join=join,
        features=features,
        like_above=scale.like_above,
        user_columns=_feature_names(service, USER_PROFILE),
        item_columns=_feature_names(service, ITEM_ATTRIBUTES),
        catalog=_latest(catalog),
        chunk_rows=chunk_rows,
    )


def build_samples(
    behaviors: pa.Table,
    *,
    join: Callable[[pa.Table], pa.Table],
    features: Features,
    like_above: float,
    user_columns: Sequence[str],
    item_columns: Sequence[str],
    catalog: pa.Table | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Samples:
    """Return `behaviors`, a canonical table, with the columns that `join` adds to each chunk of them.

    Raises:
        DataSetError: `join` lost or moved a row, or vectors cannot be used.
        StoreNotReady: with LIBER, no sample has a partition vector.
    """
    tables: list[pa.Table] = []
    vectors: list[PartitionVectors] = []
    for start in range(0, behaviors.num_rows, chunk_rows):
        rows = behaviors.slice(start, chunk_rows)
        joined = join(rows)
        _check_rows(rows, joined)
        if features == "liber":
            vectors.append(_read_vectors(joined))
            joined = joined.drop_columns([VECTORS])
        tables.append(joined)
    table = pa.concat_tables(tables, promote_options="permissive")
    return Samples(
        table=table,
        features=features,
        like_above=like_above,
        user_columns=tuple(user_columns),
        item_columns=tuple(item_columns),
        catalog=catalog,
        vectors=_joined_vectors(vectors),
        encoder_version=_encoder_version(table) if features == "liber" else None,
    )


def _read_view(store: FeatureStore, name: str) -> pa.Table:
    """Return the batch source of a feature view, its columns by the names that Feast and we give them."""
    view: FeatureView = store.get_feature_view(name)
    source = view.batch_source
    snapshot = open_snapshot(locate(source, config=store.config, view=view))
    table = snapshot.read(snapshot.dataset.schema.names)
    names = {**(source.field_mapping or {}), source.timestamp_field: EVENT_TIME}
    return table.rename_columns([names.get(own, own) for own in table.column_names])


def _feature_names(service: FeatureService, view: str) -> tuple[str, ...]:
    return tuple(
        feature.name
        for projection in service.feature_view_projections
        if projection.name == view
        for feature in projection.features
    )


def _rating_scale(store: FeatureStore) -> RatingScale:
    """Return the scale of the engine block, checked as the engine has it."""
    block = store.config.batch_engine
    if not isinstance(block, LiberComputeEngineConfig):
        raise ConfigError("feature_store.yaml: set `batch_engine.type: liber_feast.engine.LiberComputeEngine`.")
    return block.behavior.rating_scale()


def _latest(items: pa.Table) -> pa.Table:
    """Return the newest row of each item, in order of id."""
    ordered = items.sort_by([(ITEM, "ascending"), (EVENT_TIME, "ascending")])
    ids = ordered[ITEM].to_numpy(zero_copy_only=False)
    return ordered.filter(pa.array(np.append(ids[1:] != ids[:-1], [True] * bool(len(ids)))))


def _check_rows(asked: pa.Table, joined: pa.Table) -> None:
    if joined.num_rows != asked.num_rows or joined[BEHAVIOR_ID].to_pylist() != asked[BEHAVIOR_ID].to_pylist():
        raise DataSetError(
            f"the offline store answered {joined.num_rows} rows for {asked.num_rows} samples, or in another order."
            " Set `offline_store.type: liber_feast.offline_store.LiberOfflineStore`."
        )


def _read_vectors(rows: pa.Table) -> PartitionVectors:
    """Return the vectors of a chunk; their width is that of the first row that has some."""
    lengths = list_values(rows, VECTORS, kind=pa.float32(), last=None).lengths
    counts = np.nan_to_num(rows[PARTITION_COUNT].cast(pa.float64()).to_numpy(zero_copy_only=False)).astype(np.int64)
    filled = np.flatnonzero(counts > 0)
    width = int(lengths[filled[0]] // counts[filled[0]]) if len(filled) else 0
    wrong = np.flatnonzero(lengths != counts * width)
    if len(wrong):
        row = int(wrong[0])
        raise DataSetError(
            f"long_term_memory: {int(counts[row])} partitions have {int(lengths[row])} floats in `{VECTORS}`, where"
            f" {int(counts[row]) * width} were expected. {REBUILD}"
        )
    return read_partition_vectors(rows, width=max(width, 1), last=int(counts.max(initial=1)))


def _joined_vectors(parts: Sequence[PartitionVectors]) -> PartitionVectors | None:
    if not parts:
        return None
    vectors = concatenate(parts)
    if not len(vectors.table):
        raise StoreNotReady(
            "long_term_memory holds no vector for any sample. Run `feast materialize START END` in the feature repo;"
            " if it says that vectors wait for the encoder, load more behaviors."
        )
    return vectors


def _encoder_version(table: pa.Table) -> str:
    versions = sorted({found for found in table[ENCODER_VERSION].unique().to_pylist() if found})
    if len(versions) != 1:
        raise DataSetError(
            f"long_term_memory holds vectors of {len(versions)} encoder versions ({', '.join(versions)}), which"
            f" cannot be compared. {ONE_ENCODER}"
        )
    return str(versions[0])
