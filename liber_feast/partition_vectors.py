"""The partition vectors of many samples, each distinct vector kept once.

A user's memory repeats in each of their samples, so the distinct vectors are a small part of what a training set
holds: one row per sealed partition instead of one per sample and partition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.errors import ConfigError, DataSetError
from liber_feast.fields import Floats
from liber_feast.ragged import Ragged, list_values, unique_rows

VECTORS = "vectors"
ONE_ENCODER = "Run `feast materialize`, which encodes every text with the encoder of feature_store.yaml."
REBUILD = "Restore the table from a copy, or move data/ away, then load and materialize again."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PartitionVectors:
    """Sample r has the vectors `table[rows of r]`, oldest partition first."""

    table: Floats
    """(U, D) distinct vectors."""
    rows: Ragged[np.int32]

    def pad(self, samples: npt.NDArray[np.int64]) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the vectors of `samples` as (B, P, D), zeros at their ends, and (B, P) where a partition is."""
        rows_BP, sealed_BP = self.rows.pad(samples, width=None)
        if not len(self.table):
            return np.zeros((*rows_BP.shape, self.table.shape[1]), np.float32), sealed_BP
        vectors_BPD = self.table[rows_BP]
        vectors_BPD[~sealed_BP] = 0
        return vectors_BPD, sealed_BP


def read_partition_vectors(rows: pa.Table, *, width: int, last: int) -> PartitionVectors:
    """Return the last `last` vectors of each row of the column `vectors`, row-major lists of floats.

    Raises:
        ConfigError: a list whose length is no multiple of `width`.
        DataSetError: a float that is not finite.
    """
    flat = list_values(rows, VECTORS, kind=pa.float32(), last=last * width)
    torn = np.flatnonzero(flat.lengths % width)
    if len(torn):
        raise ConfigError(
            f"column {VECTORS!r} holds {int(flat.lengths[torn[0]])} floats in row {int(torn[0])}, no multiple of the"
            f" vector width {width}. Was the encoder's width changed after the fit? Then fit again."
        )
    values = check_finite(flat.values, name=VECTORS, offsets=flat.offsets)
    table, position = unique_rows(values.reshape(-1, width))
    return PartitionVectors(table=table, rows=Ragged(offsets=flat.offsets // width, values=position))


def concatenate(parts: Sequence[PartitionVectors]) -> PartitionVectors:
    """Return the samples of all `parts`, one after the other, again with each distinct vector once.

    Raises:
        DataSetError: parts of different vector widths.
    """
    tables = [part.table for part in parts if len(part.table)] or [part.table for part in parts[:1]]
    widths = sorted({table.shape[1] for table in tables})
    if len(widths) > 1:
        raise DataSetError(
            f"column {VECTORS!r} holds vectors of the widths {widths}, so of several encoders. {ONE_ENCODER}"
        )
    starts = np.cumsum([0, *(len(part.table) for part in parts)])
    table, position = unique_rows(np.concatenate(tables))
    values = np.concatenate([part.rows.values + start for part, start in zip(parts, starts[:-1], strict=True)])
    lengths = np.concatenate([part.rows.lengths for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return PartitionVectors(table=table, rows=Ragged(offsets=offsets, values=position[values]))


def check_finite(values: pa.Array, *, name: str, offsets: npt.NDArray[np.int64]) -> Floats:
    """Return the values of a list column as numpy.

    Raises:
        DataSetError: a value that is not finite; the message names its row.
    """
    floats = np.asarray(values.to_numpy(zero_copy_only=False), np.float32)
    bad = np.flatnonzero(~np.isfinite(floats))
    if len(bad):
        row = int(np.searchsorted(offsets, bad[0], side="right")) - 1
        raise DataSetError(f"column {name!r} has a value that is not finite in row {row}. {REBUILD}")
    return floats
