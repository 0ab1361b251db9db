"""Samples of a data set without a feature store: what `load_samples` would read of one, made from the set itself."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.behavior import EVENT_TIME, ITEM, RATING, USER
from liber_feast.datasets import DataSet, read_data_set
from liber_feast.offline_positions import MemoryPositions, SequencePositions
from training.data import Samples, make_samples

SEQUENCE_LENGTH, PARTITION_SIZE, MEMORY_WINDOW = 50, 20, 50
"""As the engine block of the feature repo has them."""
VECTOR_WIDTH = 64
"""Summary and shift, 32 numbers each."""

Ints = npt.NDArray[np.int64]


def benchmark_samples(source: str, *, users: int | None = None, with_memory: bool) -> Samples:
    """Return a sample for every behavior of the data set `source`, or of `users` of its users, user by user in time.

    The fields, the windows and, with memory, the number of partitions are those that a feature store gives; the
    partition vectors are drawn at random, because the time of a step does not depend on what they say.

    Raises:
        DataSetError: see `read_data_set`.
    """
    found = read_data_set(source, users=users)
    behaviors = found.behaviors.sort_by([(USER, "ascending"), (EVENT_TIME, "ascending")])
    owners = behaviors[USER].combine_chunks().dictionary_encode().indices.to_numpy()
    times = behaviors[EVENT_TIME].cast(pa.int64()).to_numpy()
    first = _run_starts(owners)
    # The first behavior of the sample's user at its very time: a sample sees what is strictly before it.
    stops = _run_starts(owners, times)
    starts = np.maximum(first, stops - SEQUENCE_LENGTH)
    recent = SequencePositions(
        starts=starts,
        lengths=stops - starts,
        counts=stops - first,
        item_ids=behaviors[ITEM].combine_chunks(),
        ratings=behaviors[RATING].combine_chunks(),
        times=times,
    )
    return make_samples(
        _with_features(behaviors, found),
        recent=recent,
        memory=_memory(first, stops=stops) if with_memory else None,
        like_above=found.scale.like_above,
        user_columns=[name for name in found.users.column_names if name not in (USER, EVENT_TIME)],
        item_columns=[name for name in found.items.column_names if name not in (ITEM, EVENT_TIME)],
        catalog=found.items,
    )


def _run_starts(*columns: Ints) -> Ints:
    """Return for each row the first row of its run of equal values in all columns."""
    is_first = np.zeros(len(columns[0]), bool)
    is_first[0] = True
    for values in columns:
        is_first[1:] |= values[1:] != values[:-1]
    starts: Ints = np.maximum.accumulate(np.where(is_first, np.arange(len(is_first)), 0))
    return starts


def _with_features(behaviors: pa.Table, found: DataSet) -> pa.Table:
    """Return the behaviors beside the attributes of their user and item."""
    for attributes, key in ((found.users, USER), (found.items, ITEM)):
        rows = attributes.drop_columns([EVENT_TIME]).take(pc.index_in(behaviors[key], attributes[key]))
        for name in rows.column_names:
            if name != key:
                behaviors = behaviors.append_column(name, rows[name])
    return behaviors


def _memory(first: Ints, *, stops: Ints) -> MemoryPositions:
    """Return the memory of rows whose users begin at rows `first`: a partition for every 20 behaviors of a user."""
    user_starts, sizes = np.unique(first, return_counts=True)
    partition_counts = sizes // PARTITION_SIZE
    offsets = np.concatenate([[0], np.cumsum(partition_counts)])
    sealed = (stops - first) // PARTITION_SIZE
    lengths = np.minimum(sealed, MEMORY_WINDOW)
    vectors = np.random.default_rng(0).standard_normal((int(offsets[-1]), VECTOR_WIDTH)).astype(np.float32)
    return MemoryPositions(
        starts=offsets[np.searchsorted(user_starts, first)] + sealed - lengths,
        lengths=lengths,
        counts=lengths,
        vectors=vectors,
        partition_index=np.arange(len(vectors)),
        encoder_versions=pa.array(["benchmark"] * len(first)),
    )
