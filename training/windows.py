"""Gather the windows of a batch on the device, from values loaded onto it once.

Shape suffixes: R rows, Q samples of the data set, B samples of the batch, W width of a batch's windows.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from liber_feast.errors import DataSetError

INDEX_LIMIT = 1 << 30
"""Rows a table may have: positions are int32, half the memory of int64, and leave room for as much again."""
BLOCK_ROWS = 1 << 18
"""Rows copied at once; Arrow's arrays are read-only, which torch takes only as a copy."""


class Windows(Protocol):
    """Window q is `values[starts[q]:starts[q] + lengths[q]]`: positions of the offline store, or ragged rows."""

    @property
    def starts(self) -> npt.NDArray[np.int64]: ...

    @property
    def lengths(self) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowTable:
    """Values on a device; `rows` (R + 1, ...) ends with a row of zeros, which padding refers to."""

    rows: Tensor

    def gather(self, starts_B: Tensor, lengths_B: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
        """Return windows as (B, width, ...), zeros at their ends, and (B, width) bool where a value is.

        Window b is the rows `starts_B[b]` to `starts_B[b] + lengths_B[b]`; of a longer one the last `width` are kept.
        Starts and lengths are integers of one type on the table's device, and windows lie within the table.
        """
        index_BW, there_BW = window_index(starts_B, lengths_B, width=width, padding=len(self.rows) - 1)
        values = self.rows.index_select(0, index_BW.view(-1))
        return values.view(*index_BW.shape, *self.rows.shape[1:]), there_BW


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleWindows:
    """The window of every sample over one table; `starts_Q` and `lengths_Q` are int32 on the table's device."""

    table: WindowTable
    starts_Q: Tensor
    lengths_Q: Tensor

    def gather(self, samples_B: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
        """Return the windows of `samples_B`, numbers of samples on the table's device, as `WindowTable.gather`."""
        return self.table.gather(self.starts_Q[samples_B], self.lengths_Q[samples_B], width=width)


def window_index(starts_B: Tensor, lengths_B: Tensor, *, width: int, padding: int) -> tuple[Tensor, Tensor]:
    """Return the rows of windows as (B, width), `padding` at their ends, and (B, width) bool where a row is.

    Of a window longer than `width` the last rows are kept. Starts and lengths are integers of one type on one device,
    and so are the rows; `padding` comes after every row and is at most `INDEX_LIMIT`.
    """
    offsets_KW, filled_KW = _steps(width, starts_B.dtype, starts_B.device)
    kept_B = lengths_B.clamp(max=width)
    index_BW = offsets_KW.index_select(0, kept_B)
    index_BW.add_((starts_B + lengths_B).sub_(kept_B)[:, None]).clamp_(max=padding)
    return index_BW, filled_KW.index_select(0, kept_B)


@lru_cache(maxsize=4)
def _steps(width: int, kind: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return by a window's length k, 0 to `width`, its offsets (width + 1, width), and as bool where a row is.

    An offset behind the window is `INDEX_LIMIT`, which takes any start beyond the padding. Kept, because comparing
    and choosing takes several times as long as copying the result from here.
    """
    steps = torch.arange(width + 1, dtype=kind, device=device)
    filled = steps[:width] < steps[:, None]
    return torch.where(filled, steps[:width], INDEX_LIMIT), filled


def load_table(values: npt.NDArray[Any], *, device: torch.device) -> WindowTable:
    """Copy `values` (R, ...) onto `device`, in their own type.

    Raises:
        DataSetError: there are 2**31 - 1 rows or more.
    """
    if len(values) >= INDEX_LIMIT:
        raise DataSetError(
            f"a table of {len(values)} rows has more than the {INDEX_LIMIT - 1} that positions can name."
        )
    kind = torch.from_numpy(np.zeros(0, values.dtype)).dtype
    rows = torch.zeros((len(values) + 1, *values.shape[1:]), dtype=kind, device=device)
    for start in range(0, len(values), BLOCK_ROWS):
        block = values[start : start + BLOCK_ROWS]
        rows[start : start + len(block)] = torch.from_numpy(block.copy())
    return WindowTable(rows=rows)


def load_windows(windows: Windows, values: npt.NDArray[Any], *, device: torch.device) -> SampleWindows:
    """Copy the windows of Q samples and the `values` (R, ...) they refer to onto `device`.

    `values` has one row for each value that the windows are over: the `vectors` or `times` of positions, or what the
    caller looked up for their `item_ids`.

    Raises:
        DataSetError: a window ends after the last of `values`, or there are too many of these.
    """
    stop = int((windows.starts + windows.lengths).max(initial=0))
    if stop > len(values):
        raise DataSetError(f"the windows reach row {stop}, but there are values for {len(values)} rows only.")
    return SampleWindows(
        table=load_table(values, device=device),
        starts_Q=torch.from_numpy(windows.starts.astype(np.int32)).to(device),
        lengths_Q=torch.from_numpy(windows.lengths.astype(np.int32)).to(device),
    )
