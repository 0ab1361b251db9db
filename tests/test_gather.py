from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast import gather as gather_module
from liber_feast import window_lists
from liber_feast.gather import gather, one_array
from liber_feast.pit import Windows
from liber_feast.window_lists import concat_windows, gather_windows
from tests.examples import at_most

FLOATS = pa.list_(pa.float32())
COLUMNS = {
    "numbers": ([1.5, 2.5, -1.0, 0.0], pa.float64()),
    "numbers with nulls": ([1, None, 3, 4], pa.int64()),
    "flags": ([True, False, None, True], pa.bool_()),
    "times": ([1, 2, None, 4], pa.timestamp("us", tz="UTC")),
    "texts": (["a", "", None, "long text"], pa.string()),
    "bytes": ([b"a", b"", None, b"bb"], pa.binary()),
    "lists of one width": ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], FLOATS),
    "lists of several widths": ([[1.0], [], [5.0, 6.0], [7.0]], FLOATS),
    "empty lists": ([[], [], [], []], FLOATS),
    "lists and nulls": ([[1.0], None, [5.0, None], [7.0]], FLOATS),
    "large lists": ([[1.0], [2.0], [3.0], [4.0]], pa.large_list(pa.float64())),
    "fixed lists": ([[1.0], [2.0], None, [4.0]], pa.list_(pa.float64(), 1)),
    "lists of texts": ([["a", "b"], [], None, [None, "c"]], pa.list_(pa.string())),
    "nested lists": ([[[1], [2, 3]], [], None, [[], None]], pa.list_(pa.list_(pa.int64()))),
    "structs": (
        [{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}, {"a": 2, "b": None}],
        pa.struct({"a": pa.int64(), "b": pa.string()}),
    ),
    "maps": ([[("a", 1)], [], None, [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int64())),
    "categories": (["a", "b", "a", None], pa.dictionary(pa.int32(), pa.string())),
}


def chunked(values: list[Any], kind: pa.DataType, cut: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values[:cut], kind), pa.array(values[cut:], kind)])


@pytest.mark.parametrize("name", COLUMNS)
@at_most(40)
@given(rows=st.lists(st.integers(-1, 3), max_size=9), cut=st.integers(0, 4), limit=st.integers(1, 40))
def test_gathered_values_are_those_of_the_rows_and_null_where_there_is_none(
    name: str, rows: list[int], cut: int, limit: int
) -> None:
    values, kind = COLUMNS[name]
    column = chunked(values, kind, cut)
    found = gather(column, np.array(rows, np.int64), limit=limit)
    found.validate(full=True)
    python = column.to_pylist()
    assert found.type == kind
    assert found.to_pylist() == [None if row < 0 else python[row] for row in rows]


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in {"categories", "large lists"}])
@at_most(40)
@given(
    order=st.permutations(range(4)),
    spans=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=6),
    limit=st.integers(1, 12),
)
def test_a_window_is_the_list_of_its_values(
    name: str, order: list[int], spans: list[tuple[int, int]], limit: int
) -> None:
    values, kind = COLUMNS[name]
    found = gather_windows(pa.chunked_array([pa.array(values, kind)]), windows(order, spans), limit=limit)
    found.validate(full=True)
    python = pa.array(values, kind).to_pylist()
    assert found.to_pylist() == [[python[row] for row in order[a : a + n]] or None for a, n in spans]


@pytest.mark.parametrize("name", [name for name in COLUMNS if "list" in name and "fixed" not in name])
@at_most(40)
@given(
    order=st.permutations(range(4)),
    spans=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=6),
    limit=st.integers(1, 12),
)
def test_joined_windows_hold_the_values_of_their_lists_in_order(
    name: str, order: list[int], spans: list[tuple[int, int]], limit: int
) -> None:
    values, kind = COLUMNS[name]
    found = concat_windows(pa.chunked_array([pa.array(values, kind)]), windows(order, spans), limit=limit)
    found.validate(full=True)
    expected = [
        [value for row in order[a : a + n] for value in values[row] or []] if order[a : a + n] else None
        for a, n in spans
    ]
    assert found.to_pylist() == expected


def windows(order: list[int], spans: list[tuple[int, int]]) -> Windows:
    starts = np.array([min(a, 4) for a, _ in spans], np.int64)
    stops = np.array([min(a + n, 4) for a, n in spans], np.int64)
    return Windows(rows=np.array(order, np.int64), starts=starts, stops=stops, counts=stops - starts)


def test_an_empty_column_gives_nulls() -> None:
    column = pa.chunked_array([], FLOATS)
    assert gather(column, np.array([-1, -1])).to_pylist() == [None, None]


@pytest.mark.parametrize("name", ["texts", "bytes", "lists of texts", "lists and nulls"])
def test_columns_beyond_32_bit_offsets_are_joined_in_their_large_type(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather_module, "OFFSET_LIMIT", 1)
    values, kind = COLUMNS[name]
    column = chunked(values, kind, 2)
    assert one_array(column).type != kind
    assert one_array(column).to_pylist() == values
    assert gather(column, np.array([3, -1, 0])).to_pylist() == [values[3], None, values[0]]
    assert gather(column, np.array([3, -1, 0])).type == kind


@at_most(60)
@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=30),
    cut=st.integers(0, 3),
    spans=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12),
    limit=st.integers(1, 200),
    piece=st.integers(1, 60),
    kind=st.sampled_from([pa.string(), pa.binary()]),
)
def test_texts_are_copied_whatever_their_lengths_and_the_pieces(
    texts: list[str], cut: int, spans: list[tuple[int, int]], limit: int, piece: int, kind: pa.DataType
) -> None:
    column = pa.array(["before", *texts]).slice(1).cast(kind)
    order = list(range(len(texts)))[cut:] + list(range(len(texts)))[:cut]
    starts = np.array([min(a, len(order)) for a, _ in spans], np.int64)
    stops = np.minimum(starts + np.array([n for _, n in spans], np.int64), len(order))
    asked = Windows(rows=np.array(order, np.int64), starts=starts, stops=stops, counts=stops - starts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_lists, "PIECE_BYTES", piece)
        patch.setattr(window_lists, "PIECE_LIMIT", piece)
        found = gather_windows(pa.chunked_array([column]), asked, limit=limit)
    found.validate(full=True)
    python = column.to_pylist()
    expected = [[python[row] for row in order[a:b]] or None for a, b in zip(starts, stops, strict=True)]
    assert found.to_pylist() == expected
