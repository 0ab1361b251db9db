"""Lists of the values that the windows of a join hold.

The values of a window lie together in the order of its rows. Plain numbers and texts are copied into memory that is
taken once per chunk: the system backs one large array by large pages, and clears many small ones page by page, which
costs more than the copies. Other types go through Arrow's take, a piece at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.gather import (
    CHUNK_LIMIT,
    OFFSET_LIMIT,
    ends_of,
    is_text,
    lists,
    one_array,
    plain_numbers,
    taker,
    value_sizes,
)
from liber_feast.pit import Ints, Windows, ranges, slices

PIECE_LIMIT = 1 << 18
"""Values gathered at once: their positions (2 MiB) stay in the processor's cache, and in memory that the process has
already."""
PIECE_BYTES = 1 << 20
"""Bytes of texts copied at once, for the same reason."""

Copy = Callable[[Ints, Ints], pa.Array]
"""Returns the values at the ranges [starts, stops) of some array, one range after the other."""


def gather_windows(column: pa.ChunkedArray, windows: Windows, *, limit: int | None = None) -> pa.ChunkedArray:
    """Return the list of values of each window, null where a window is empty.

    `limit` is how many list values, or bytes of text, a chunk may hold.
    """
    values = one_array(column).take(pa.array(windows.rows))
    sizes = value_sizes(values)
    ends = np.arange(len(values) + 1) if sizes is None else ends_of(sizes + 1)
    copy, usual_limit = _copying(values)
    kind = pa.list_(column.type)
    parts = []
    for part in slices(ends[windows.stops] - ends[windows.starts], limit=limit or usual_limit):
        starts, stops = windows.starts[part], windows.stops[part]
        parts.append(
            lists(ends_of(stops - starts), copy(starts, stops).cast(column.type), empty=stops == starts, kind=kind)
        )
    return pa.chunked_array(parts, kind)


def concat_windows(column: pa.ChunkedArray, windows: Windows, *, limit: int = PIECE_LIMIT) -> pa.ChunkedArray:
    """Return the lists of each window joined into one list (row-major), null where a window is empty."""
    array = one_array(column)
    take, sizes = taker(array), pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = ends_of(sizes[windows.rows].astype(np.int64) + 1)
    kind = pa.list_(column.type.value_type)
    parts = []
    for part in slices(ends[windows.stops] - ends[windows.starts], limit=limit):
        offsets, places = ranges(windows.starts[part], windows.stops[part])
        rows = windows.rows[places]
        inner = ends_of(sizes[rows].astype(np.int64))
        empty = windows.stops[part] == windows.starts[part]
        parts.append(lists(inner[offsets], take(rows).flatten(), empty=empty, kind=kind))
    return pa.chunked_array(parts, kind)


def _copying(values: pa.Array) -> tuple[Copy, int]:
    """Return what copies ranges of `values`, and the usual size of a chunk."""
    numbers = plain_numbers(values)
    if numbers is not None:
        return lambda starts, stops: pa.array(_copied_numbers(numbers, starts, stops), values.type), CHUNK_LIMIT
    if is_text(values.type) and len(values) and not values.null_count:
        return partial(_copied_texts, values), CHUNK_LIMIT
    take = taker(values)
    return lambda starts, stops: take(ranges(starts, stops)[1]), PIECE_LIMIT


def _copied_numbers(numbers: npt.NDArray[Any], starts: Ints, stops: Ints) -> npt.NDArray[Any]:
    counts = stops - starts
    copied = np.empty(counts.sum(), numbers.dtype)
    at = 0
    for piece in slices(counts, limit=PIECE_LIMIT):
        _, places = ranges(starts[piece], stops[piece])
        # With "raise" numpy would fill a copy first.
        np.take(numbers, places, out=copied[at : at + len(places)], mode="clip")
        at += len(places)
    return copied


def _copied_texts(texts: pa.Array, starts: Ints, stops: Ints) -> pa.Array:
    _, offsets_buffer, data = texts.buffers()
    is_large = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
    offsets = np.frombuffer(offsets_buffer, np.int64 if is_large else np.int32)[texts.offset :][: len(texts) + 1]
    firsts: Ints = offsets[starts].astype(np.int64)
    sizes = offsets[stops].astype(np.int64) - firsts
    if sizes.sum() > OFFSET_LIMIT:  # one window alone: Arrow says what it cannot hold
        return texts.take(pa.array(ranges(starts, stops)[1]))
    copied = np.empty(sizes.sum(), np.uint8)
    if len(copied):
        _copy_blocks(np.frombuffer(data, np.uint8), firsts, sizes, out=copied)
    counts = _copied_numbers(np.diff(offsets), starts, stops)
    ends = np.zeros(len(counts) + 1, offsets.dtype)
    np.cumsum(counts, out=ends[1:])
    return pa.Array.from_buffers(texts.type, len(counts), [None, pa.py_buffer(ends), pa.py_buffer(copied)])


def _copy_blocks(source: npt.NDArray[np.uint8], starts: Ints, sizes: Ints, *, out: npt.NDArray[np.uint8]) -> None:
    """Copy the ranges of `source` one after the other: each as blocks of 2**n bytes, one for each bit of its size."""
    at = 0
    for piece in slices(sizes, limit=PIECE_BYTES):
        left, ends = sizes[piece], at + np.cumsum(sizes[piece])
        for bit in reversed(range(int(left.max()).bit_length())):
            chosen = np.flatnonzero(left & (1 << bit))
            done = left[chosen] & (-2 << bit)
            to = ends[chosen] - left[chosen] + done
            _blocks(out, 1 << bit)[to] = _blocks(source, 1 << bit)[starts[piece][chosen] + done]
        at = int(ends[-1])


def _blocks(values: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.void]:
    """Return a view of the `size` bytes from each byte on; shorter arrays have none."""
    return np.ndarray((max(len(values) - size + 1, 0),), f"V{size}", values, strides=(1,))
