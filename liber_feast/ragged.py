"""Rows of different lengths over flat values, padded only when a batch needs them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Scalar = TypeVar("Scalar", bound=np.generic)
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ragged(Generic[Scalar]):
    """Row r is `values[starts[r]:starts[r] + lengths[r]]`; rows may share values (N, ...)."""

    starts: Offsets
    lengths: Offsets
    values: npt.NDArray[Scalar]

    def sums(self, flags: npt.NDArray[Any]) -> Offsets:
        """Return the sum of `flags`, one per value, over each row."""
        total: Offsets = np.concatenate([[0], np.cumsum(flags)]).astype(np.int64)
        sums: Offsets = total[self.starts + self.lengths] - total[self.starts]
        return sums

    def select(self, keep: Callable[[npt.NDArray[Scalar]], npt.NDArray[np.bool_]]) -> "Ragged[Scalar]":
        """Return the rows with only the values that `keep` marks, in their order."""
        kept = keep(self.values)
        return Ragged(
            starts=np.concatenate([[0], np.cumsum(kept)])[self.starts],
            lengths=self.sums(kept),
            values=self.values[kept],
        )

    def pad(self, rows: npt.NDArray[Any], *, width: int | None) -> tuple[npt.NDArray[Scalar], npt.NDArray[np.bool_]]:
        """Return `rows` as (len(rows), width, ...), zeros at their ends, and (len(rows), width) where a value is.

        Longer rows are cut at `width`; None means the longest of them, at least 1.
        """
        length = self.lengths[rows]
        size = max(int(length.max(initial=0)), 1) if width is None else width
        steps = np.arange(size)
        there = steps < length[:, None]
        position = np.where(there, self.starts[rows][:, None] + steps, 0)
        source = self.values if len(self.values) else np.zeros((1, *self.values.shape[1:]), self.values.dtype)
        padded = source[position]
        padded[~there] = 0
        return padded, there


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RaggedValues:
    """Row r is `values[starts[r]:starts[r] + lengths[r]]` of an Arrow array; rows may share values."""

    starts: Offsets
    lengths: Offsets
    values: pa.Array

    def last(self, count: int) -> "RaggedValues":
        """Return the last `count` values of each row."""
        kept = np.minimum(self.lengths, count)
        return RaggedValues(starts=self.starts + self.lengths - kept, lengths=kept, values=self.values)

    def of(self, values: npt.NDArray[Scalar]) -> Ragged[Scalar]:
        """Return the same rows over what was computed for each of the values."""
        return Ragged(starts=self.starts, lengths=self.lengths, values=values)


def list_values(rows: pa.Table, name: str, *, kind: pa.DataType, last: int | None) -> RaggedValues:
    """Return the last `last` values of each list in a column (None: all), and no others.

    A null and a missing column are empty.
    """
    if name not in rows.column_names or pa.types.is_null(rows.column(name).type):
        nothing = np.zeros(rows.num_rows, np.int64)
        return RaggedValues(starts=nothing, lengths=nothing, values=pa.array([], kind))
    lists = whole(rows.column(name), kind=pa.large_list(kind))
    offsets = lists.offsets.to_numpy(zero_copy_only=False)
    firsts, lengths = offsets[:-1], np.diff(offsets)
    if lists.null_count:
        lengths = np.where(lists.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    kept = lengths if last is None else np.minimum(lengths, last)
    ends = np.cumsum(kept)
    starts, firsts = ends - kept, firsts + lengths - kept
    values = lists.values
    if kept.sum() != len(values) or not np.array_equal(firsts, starts):
        values = values.take(pa.array(np.repeat(firsts - starts, kept) + np.arange(kept.sum()), pa.int64()))
    return RaggedValues(starts=starts, lengths=kept, values=values)


def whole(column: pa.ChunkedArray, *, kind: pa.DataType) -> pa.Array:
    """Return a column as one array of the type `kind`; a request has few rows, so what need not be done is not."""
    found = column if column.type.equals(kind) else column.cast(kind)
    if found.num_chunks == 1:
        return found.chunk(0)
    return pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], kind)
