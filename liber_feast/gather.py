"""Bring the values that a join found into place: one gather per column, in chunks that Arrow's offsets can hold.

Lists and texts of an Arrow array have 32-bit offsets, so a chunk ends before its values pass that; a column's
type is the same whatever its size.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.pit import Flags, Ints, slices

CHUNK_LIMIT = 1 << 30
"""List values or bytes of text in one chunk of a gathered column."""
OFFSET_LIMIT = (1 << 31) - 1


def gather(column: pa.ChunkedArray, rows: Ints, *, limit: int = CHUNK_LIMIT) -> pa.ChunkedArray:
    """Return the values of `column` at `rows`, null at NO_ROW, in the type of `column`."""
    array = one_array(column)
    take, sizes = taker(array), value_sizes(array)
    if sizes is None:
        return pa.chunked_array([take(rows)], column.type)
    wanted = np.where(rows >= 0, sizes[rows] if len(sizes) else 0, 0)
    parts = [take(rows[part]).cast(column.type) for part in slices(wanted, limit=limit)]
    return pa.chunked_array(parts, column.type)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; texts and lists too long for 32-bit offsets in their large type."""
    if column.num_chunks == 1:
        return column.chunk(0)
    kind = column.type
    if sum(chunk.nbytes for chunk in column.chunks) > OFFSET_LIMIT:
        kind = _large(kind)
    return pa.concat_arrays([chunk.cast(kind) for chunk in column.chunks] or [pa.array([], kind)])


def _large(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    return pa.large_list(_large(kind.value_type)) if pa.types.is_list(kind) else kind


def lists(offsets: Ints, values: pa.Array, *, empty: Flags, kind: pa.DataType) -> pa.Array:
    mask = pa.array(empty) if empty.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=kind, mask=mask)


def ends_of(sizes: Ints) -> Ints:
    ends: Ints = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


def taker(array: pa.Array) -> Callable[[Ints], pa.Array]:
    """Return what takes rows of `array`, null at NO_ROW; lists of one width and plain numbers are copied as blocks."""
    numbers = plain_numbers(array)
    if numbers is not None:
        return lambda rows: pa.array(np.take(numbers, rows, mode="wrap"), array.type, mask=_gone(rows))
    table = _table(array)
    if table is None:
        return lambda rows: array.take(pa.array(rows, pa.int64(), mask=_gone(rows)))
    width, kind = table.shape[1], array.type.value_type

    def take(rows: Ints) -> pa.Array:
        found = rows >= 0
        values = pa.array(np.take(table, rows if found.all() else rows[found], axis=0).reshape(-1), kind)
        return lists(ends_of(found.astype(np.int64) * width), values, empty=~found, kind=pa.list_(kind)).cast(
            array.type
        )

    return take


def _gone(rows: Ints) -> Flags | None:
    gone = rows < 0
    return gone if gone.any() else None


def plain_numbers(array: pa.Array) -> npt.NDArray[np.generic] | None:
    plain = pa.types.is_floating(array.type) or pa.types.is_integer(array.type)
    return array.to_numpy() if plain and not array.null_count and len(array) else None


def _table(array: pa.Array) -> npt.NDArray[np.generic] | None:
    """Return lists of one width as a table (rows, width) without a copy, or None where they are not that."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)) or array.null_count or not len(array):
        return None
    values = plain_numbers(array.flatten())
    lengths = pc.list_value_length(array)
    if values is None or pc.min(lengths).as_py() != pc.max(lengths).as_py():
        return None
    table: npt.NDArray[np.generic] = values.reshape(len(array), -1)
    return table


def value_sizes(array: pa.Array) -> Ints | None:
    """Return how many list values or bytes of text each row holds, or None where every row holds one plain value."""
    kind = array.type
    if pa.types.is_nested(kind) and not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return np.full(len(array), array.nbytes // max(len(array), 1) + 1, np.int64)
    if pa.types.is_nested(kind):
        lengths: Ints = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        inner = value_sizes(array.flatten())
        return lengths if inner is None else lengths + np.diff(ends_of(inner)[ends_of(lengths)])
    if not is_text(kind):
        return None
    sizes: Ints = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes


def is_text(kind: pa.DataType) -> bool:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in texts)
