"""Rows of different lengths in two flat arrays, padded only when a batch needs them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Scalar = TypeVar("Scalar", bound=np.generic)
HASH_ROWS = 1 << 16
"""Rows hashed at once; bounds the memory of `unique_rows`."""

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RaggedValues:
    """Row r is `values[offsets[r]:offsets[r + 1]]` of an Arrow array."""

    offsets: Offsets
    values: pa.Array

    @property
    def lengths(self) -> Offsets:
        return np.diff(self.offsets)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ragged(Generic[Scalar]):
    """Row r is `values[offsets[r]:offsets[r + 1]]` of a numpy array."""

    offsets: Offsets
    values: npt.NDArray[Scalar]

    @property
    def lengths(self) -> Offsets:
        return np.diff(self.offsets)

    def sums(self, flags: npt.NDArray[Any]) -> Offsets:
        """Return the sum of `flags`, one per value, over each row."""
        total: Offsets = np.concatenate([[0], np.cumsum(flags)]).astype(np.int64)
        return np.diff(total[self.offsets])

    def select(self, keep: Callable[[npt.NDArray[Scalar]], npt.NDArray[np.bool_]]) -> "Ragged[Scalar]":
        """Return the rows with only the values that `keep` marks, in their order."""
        kept = keep(self.values)
        counts = np.concatenate([[0], np.cumsum(kept)])
        return Ragged(offsets=counts[self.offsets], values=self.values[kept])

    def pad(self, rows: npt.NDArray[Any], *, width: int | None) -> tuple[npt.NDArray[Scalar], npt.NDArray[np.bool_]]:
        """Return `rows` as (len(rows), width), zeros at their ends, and where a value is.

        Longer rows are cut at `width`; None means the longest of them, at least 1.
        """
        length = self.lengths[rows]
        size = max(int(length.max(initial=0)), 1) if width is None else width
        steps = np.arange(size)
        there = steps < length[:, None]
        position = np.where(there, self.offsets[:-1][rows][:, None] + steps, 0)
        source = self.values if len(self.values) else np.zeros(1, self.values.dtype)
        return np.where(there, source[position], np.zeros((), source.dtype)), there


def list_values(rows: pa.Table, name: str, *, kind: pa.DataType, last: int | None) -> RaggedValues:
    """Return the last `last` values of each list in a column (None: all); a null or a missing column is empty."""
    if name not in rows.column_names or pa.types.is_null(rows.column(name).type):
        return RaggedValues(offsets=np.zeros(rows.num_rows + 1, np.int64), values=pa.array([], kind))
    column = rows.column(name).cast(pa.large_list(kind))
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.large_list(kind))
    starts = lists.offsets.to_numpy(zero_copy_only=False)[:-1]
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    kept = lengths if last is None else np.minimum(lengths, last)
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    first = starts + lengths - kept
    if offsets[-1] == len(lists.values) and np.array_equal(first, offsets[:-1]):
        return RaggedValues(offsets=offsets, values=lists.values)
    positions = np.repeat(first - offsets[:-1], kept) + np.arange(offsets[-1])
    return RaggedValues(offsets=offsets, values=lists.values.take(pa.array(positions, pa.int64())))


def unique_rows(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the distinct rows of `table` (R, D) and the position of each row's equal among them.

    Rows are told apart by a 64-bit hash; should two differing rows share one, nothing is merged.
    """
    if not len(table):
        return table, np.zeros(0, np.int32)
    words = np.ascontiguousarray(table).view(np.uint32)
    factors = np.random.default_rng(0).integers(1, 2**63, size=words.shape[1], dtype=np.uint64) * 2 + 1
    starts = range(0, len(words), HASH_ROWS)
    hashes = np.concatenate([(words[s : s + HASH_ROWS] * factors).sum(axis=1, dtype=np.uint64) for s in starts])
    _, first, position = np.unique(hashes, return_index=True, return_inverse=True)
    distinct = table[first]
    if not all(np.array_equal(distinct[position[s : s + HASH_ROWS]], table[s : s + HASH_ROWS]) for s in starts):
        return table, np.arange(len(table), dtype=np.int32)
    return distinct, position.astype(np.int32)
