"""The long-term memory with a part of LIBER left out: without the shift, or without self-attention."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from liber_feast.ragged import Ragged
from training.data import Samples


def without_shift(samples: Samples) -> Samples:
    """Return the samples with vectors of summaries alone: the first half of each partition vector (P, D)."""
    vectors = memory_of(samples)
    width = vectors.values.shape[1] // 2
    return replace(samples, vectors=replace(vectors, values=np.ascontiguousarray(vectors.values[:, :width])))


def mean_pooled(samples: Samples) -> Samples:
    """Return the samples with one vector each: the mean of those that they see.

    Over one vector self-attention is its linear map of values, so what is left out is the attention alone.
    """
    vectors = memory_of(samples)
    seen = vectors.lengths > 0
    windows, window_of = np.unique(
        np.stack([vectors.starts[seen], vectors.lengths[seen]], 1), axis=0, return_inverse=True
    )
    starts = np.zeros(len(seen), np.int64)
    starts[seen] = window_of.reshape(-1)
    means = _means(vectors.values, starts=windows[:, 0], lengths=windows[:, 1])
    return replace(samples, vectors=Ragged(starts=starts, lengths=seen.astype(np.int64), values=means))


def memory_of(samples: Samples) -> Ragged[np.float32]:
    """Return the partition vectors of samples that were loaded with them."""
    if samples.vectors is None:
        raise ValueError("the samples were loaded without partition vectors: load_samples(..., features='liber')")
    return samples.vectors


def _means(
    values: npt.NDArray[np.float32], *, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
    means: npt.NDArray[np.float32] = ((sums[starts + lengths] - sums[starts]) / lengths[:, None]).astype(np.float32)
    return means
