"""The partition vectors, and the fused one, in a row's list of floats."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.errors import ConfigError, DataSetError
from liber_feast.fields import Floats
from liber_feast.ragged import Ragged, RaggedValues, list_values

VECTORS, FUSED = "vectors", "fused"
ONE_ENCODER = "Run `feast materialize`, which encodes every text with the encoder of feature_store.yaml."
REBUILD = "Restore the table from a copy, or move data/ away, then load and materialize again."


def read_partition_vectors(rows: pa.Table, *, width: int, last: int) -> Ragged[np.float32]:
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
    vectors = check_finite(flat, name=VECTORS).reshape(-1, width)
    return Ragged(starts=flat.starts // width, lengths=flat.lengths // width, values=vectors)


def read_fused_vectors(rows: pa.Table, *, width: int) -> Floats:
    """Return the column `fused` as (rows, `width`), zeros where there is none.

    Raises:
        ConfigError: a vector of another width.
        DataSetError: a float that is not finite.
    """
    flat = list_values(rows, FUSED, kind=pa.float32(), last=None)
    values = check_finite(flat, name=FUSED)
    check_width(flat, name=FUSED, width=width, advice="Publish the fused vectors with this run's fusion weights.")
    fused = np.zeros((rows.num_rows, width), np.float32)
    fused[flat.lengths > 0] = values.reshape(-1, width)
    return fused


def check_width(flat: RaggedValues, *, name: str, width: int, advice: str) -> None:
    """Check that each row of a list column is empty or `width` long.

    Raises:
        ConfigError: one is not; the message names it and ends with `advice`.
    """
    wrong = np.flatnonzero((flat.lengths > 0) & (flat.lengths != width))
    if len(wrong):
        raise ConfigError(
            f"column {name!r} is {int(flat.lengths[wrong[0]])} wide in row {int(wrong[0])}, the run needs {width}."
            f" {advice}"
        )


def check_finite(flat: RaggedValues, *, name: str) -> Floats:
    """Return the values of a list column as numpy; its rows lie one after the other.

    Raises:
        DataSetError: a value that is not finite; the message names its row.
    """
    floats: npt.NDArray[np.float32] = np.asarray(flat.values.to_numpy(zero_copy_only=False), np.float32)
    bad = np.flatnonzero(~np.isfinite(floats))
    if len(bad):
        row = int(np.searchsorted(flat.starts + flat.lengths, bad[0], side="right"))
        raise DataSetError(f"column {name!r} has a value that is not finite in row {row}. {REBUILD}")
    return floats
