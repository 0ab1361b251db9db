"""The computed views for training at scale: where each sample's window lies, instead of the window itself.

The views tagged `liber.stage: sequence` and `vector` repeat a user's values in each of their rows. Here the values
come back once and every entity row gets two integers: its window is `values[start:start + length]`, equal to the lists
that `get_historical_features` returns for the same rows.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView
from feast.errors import FeatureViewNotFoundException
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

from liber_feast.errors import ConfigError, DataSetError, StoreNotReady
from liber_feast.fields import Floats
from liber_feast.gather import gather, one_array
from liber_feast.offline_candidates import ViewRequest
from liber_feast.offline_entities import EntityFrame, EntityRows, check_keys, entity_rows
from liber_feast.offline_join import SEQUENCE_SOURCES, ViewWindows, sequence_windows, vector_windows
from liber_feast.offline_read import STAGE, locate, open_snapshot
from liber_feast.offline_store import LiberOfflineStore, stage_limits
from liber_feast.partition_vectors import ONE_ENCODER, REBUILD
from liber_feast.pit import Ints, Windows, rescale


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowPositions:
    """Window q, oldest first, is `values[starts[q]:starts[q] + lengths[q]]` of every array of values.

    All three are int64 (Q,), one per entity row in the frame's order, and 0 where nothing is visible. The values hold
    a source row only if some window holds it, and then once. Where the rows of a user become visible in another order
    than their own (a partition sealed late, or encoded again with a later time), that user's windows are no slices
    of one order: each has rows of its own, and a source row is there once per window that holds it.
    """

    starts: Ints
    lengths: Ints
    counts: Ints
    """The view's count of the entity row: `behavior_count`, before the cut, or `partition_count`, after it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SequencePositions(WindowPositions):
    """The sequence of each entity row over N behaviors."""

    item_ids: pa.Array
    """(N,), in the type of the source."""
    ratings: pa.Array
    """(N,), in the type of the source."""
    times: Ints
    """(N,) event times, microseconds since 1970 UTC."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryPositions(WindowPositions):
    """The long-term memory of each entity row over P sealed partitions."""

    vectors: Floats
    """(P, D), finite; (0, 0) where no entity row sees a partition."""
    partition_index: Ints
    """(P,) the number of the partition among its user's."""
    encoder_versions: pa.Array
    """(Q,) the encoder of each entity row's vectors, null where nothing is visible."""


def sequence_positions(store: FeatureStore, *, view_name: str, entity_frame: EntityFrame) -> SequencePositions:
    """Return the last behaviors strictly before each row of `entity_frame`, as positions in the behaviors.

    Raises:
        StoreNotReady: there is no such view, or nothing at its source.
        ConfigError: the view is not tagged `liber.stage: sequence`, the offline store is not ours, or the view and the
            frame cannot be joined.
        InvalidBehaviors: behaviors have null ids or items.
    """
    view = _view(store, view_name, stage="sequence")
    seen = sequence_windows(
        ViewRequest(view=view, features=tuple(SEQUENCE_SOURCES)),
        rows=_entities(entity_frame, view=view),
        snapshot=open_snapshot(locate(view.batch_source, config=store.config, view=view)),
        length=stage_limits(store.config).sequence_length,
    )
    windows = _held(seen.windows)
    return SequencePositions(
        starts=windows.starts,
        lengths=windows.stops - windows.starts,
        counts=windows.counts,
        item_ids=_values(seen, "item_ids", rows=windows.rows),
        ratings=_values(seen, "ratings", rows=windows.rows),
        times=rescale(seen.found.times[windows.rows], source=seen.found.unit, target="us"),
    )


def memory_positions(store: FeatureStore, *, view_name: str, entity_frame: EntityFrame) -> MemoryPositions:
    """Return the last partitions sealed at or before each row of `entity_frame`, as positions in the partitions.

    Raises:
        StoreNotReady: there is no such view, or nothing at its source.
        ConfigError: the view is not tagged `liber.stage: vector`, the offline store is not ours, or the view and the
            frame cannot be joined.
        DataSetError: vectors of several widths or of none, or with nulls or values that are not finite, or partitions
            without an index or an encoder version.
    """
    view = _view(store, view_name, stage="vector")
    seen = vector_windows(
        ViewRequest(view=view, features=()),
        rows=_entities(entity_frame, view=view),
        snapshot=open_snapshot(locate(view.batch_source, config=store.config, view=view)),
        length=stage_limits(store.config).memory_window,
    )
    windows = _held(seen.windows)
    lengths = windows.stops - windows.starts
    versions = seen.found.table.column(seen.columns["encoder_version"])
    return MemoryPositions(
        starts=windows.starts,
        lengths=lengths,
        counts=lengths,
        vectors=_matrix(_values(seen, "vector", rows=windows.rows), view_name=view_name, column=seen.columns["vector"]),
        partition_index=_values(seen, "partition_index", rows=windows.rows).cast(pa.int64()).to_numpy(),
        encoder_versions=one_array(gather(versions, seen.found.table_rows(windows.newest))),
    )


def _view(store: FeatureStore, name: str, *, stage: str) -> FeatureView:
    try:
        view: FeatureView = store.get_feature_view(name)
    except FeatureViewNotFoundException as error:
        raise StoreNotReady(
            f"feature view {name!r}: there is none of this name in project {store.project!r}. Correct the name, or run"
            " `feast apply` in the feature repo."
        ) from error
    if view.tags.get(STAGE) != stage:
        raise ConfigError(
            f"feature view {name!r}: its tag {STAGE} is {view.tags.get(STAGE)!r}, not {stage!r}."
            f" Name a view that is tagged {STAGE}: {stage}."
        )
    offline_store = get_offline_store_from_config(store.config.offline_store)
    if not isinstance(offline_store, LiberOfflineStore):
        raise ConfigError(
            f"feature view {name!r}: the offline store is {type(offline_store).__name__}, which finds no positions."
            " Set `offline_store.type: liber_feast.offline_store.LiberOfflineStore`."
        )
    return view


def _entities(frame: EntityFrame, *, view: FeatureView) -> EntityRows:
    rows = entity_rows(frame)
    check_keys(rows, [view])
    return rows


def _held(windows: Windows) -> Windows:
    """Return the same windows over only the rows that some window holds; empty windows start at 0."""
    filled, size = windows.stops > windows.starts, len(windows.rows) + 1
    edges = np.bincount(windows.starts[filled], minlength=size) - np.bincount(windows.stops[filled], minlength=size)
    held = np.cumsum(edges[:-1]) > 0
    places: Ints = np.concatenate([[0], np.cumsum(held)])
    return Windows(
        rows=windows.rows[held],
        starts=np.where(filled, places[windows.starts], 0),
        stops=np.where(filled, places[windows.stops], 0),
        counts=windows.counts,
    )


def _values(seen: ViewWindows, name: str, *, rows: Ints) -> pa.Array:
    """Return the values of a column at candidate rows."""
    return one_array(gather(seen.found.table.column(seen.columns[name]), seen.found.places[rows]))


def _matrix(lists: pa.Array, *, view_name: str, column: str) -> Floats:
    """Return lists of numbers as a table (P, D)."""
    owner = f"feature view {view_name!r}"
    widths = pc.unique(pc.list_value_length(lists)).sort().to_pylist()
    if len(widths) > 1:
        raise DataSetError(
            f"{owner}: its vectors have the widths {', '.join(map(str, widths))}, so they are of several encoders."
            f" {ONE_ENCODER}"
        )
    if widths == [0]:
        raise DataSetError(f"{owner}: column {column!r} has vectors without values. {REBUILD}")
    floats = lists.flatten()
    numbers: Floats = np.asarray(floats.to_numpy(zero_copy_only=False), np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        what = "null" if floats[int(bad[0])].as_py() is None else "not finite"
        raise DataSetError(f"{owner}: a value of its vectors is {what}. {REBUILD}")
    return numbers.reshape(len(lists), widths[0] if widths else 0)
