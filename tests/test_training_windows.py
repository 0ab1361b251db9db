"""Windows gathered on the device: what a plain loop over the values gives."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.errors import DataSetError
from liber_feast.offline_positions import MemoryPositions, WindowPositions
from training import windows
from training.windows import load_table, load_windows, window_index

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

Values = npt.NDArray[Any]
Window = tuple[int, int]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Values, list[Window]]:
    """Values (R, ...), none of them 0, and windows over them as (start, length)."""
    count = draw(st.integers(0, 12))
    shape = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    kind = draw(st.sampled_from([np.float32, np.float64, np.int32, np.int64]))
    values = np.arange(1, count * int(np.prod(shape)) + 1).astype(kind).reshape(count, *shape)
    bounds = st.tuples(st.integers(0, count), st.integers(0, count)).map(sorted)
    return values, [(start, stop - start) for start, stop in draw(st.lists(bounds, max_size=6))]


def positions_of(pairs: list[Window]) -> WindowPositions:
    starts, lengths = np.array(pairs, np.int64).reshape(-1, 2).T.copy()
    return WindowPositions(starts=starts, lengths=lengths, counts=lengths)


def padded(values: Values, pairs: list[Window], *, width: int) -> tuple[Values, npt.NDArray[np.bool_]]:
    """The rule, window by window."""
    found = np.zeros((len(pairs), width, *values.shape[1:]), values.dtype)
    there = np.zeros((len(pairs), width), bool)
    for row, (start, length) in enumerate(pairs):
        last = values[start : start + length][-width:]
        found[row, : len(last)] = last
        there[row, : len(last)] = True
    return found, there


def check_gather(table: tuple[Values, list[Window]], *, width: int, device: torch.device) -> None:
    values, pairs = table
    samples = load_windows(positions_of(pairs), values, device=device)
    order = np.random.default_rng(0).integers(0, max(len(pairs), 1), 2 * len(pairs))
    found, there = samples.gather(torch.from_numpy(order).to(device), width=width)
    expected, expected_there = padded(values, [pairs[sample] for sample in order], width=width)
    assert (found.device.type, there.dtype) == (device.type, torch.bool)
    assert found.cpu().numpy().dtype == values.dtype
    np.testing.assert_array_equal(found.cpu().numpy(), expected)
    np.testing.assert_array_equal(there.cpu().numpy(), expected_there)


@given(table=tables(), width=st.integers(1, 8))
def test_a_gathered_window_is_its_last_values_with_zeros_after_them(
    table: tuple[Values, list[Window]], width: int
) -> None:
    check_gather(table, width=width, device=CPU)


@needs_gpu
@given(table=tables(), width=st.integers(1, 8))
def test_a_gpu_gathers_what_the_cpu_gathers(table: tuple[Values, list[Window]], width: int) -> None:
    check_gather(table, width=width, device=torch.device("cuda"))


def test_of_a_longer_window_the_last_values_are_kept() -> None:
    samples = load_windows(positions_of([(1, 4)]), np.array([1.0, 2.0, 3.0, 4.0, 5.0]), device=CPU)
    found, there = samples.gather(torch.tensor([0]), width=2)
    assert (found.tolist(), there.tolist()) == ([[4.0, 5.0]], [[True, True]])


@given(table=tables(), width=st.integers(1, 4), seed=st.integers(0, 9))
def test_a_batch_of_full_windows_is_gathered_like_any_other(
    table: tuple[Values, list[Window]], width: int, seed: int
) -> None:
    values, pairs = table
    check_gather((values, [pair for pair in pairs if pair[1] >= width]), width=width, device=CPU)
    starts = np.random.default_rng(seed).integers(0, max(len(values) - width + 1, 1), 5).tolist()
    check_gather(
        (values, [(start, width) for start in starts if start + width <= len(values)]), width=width, device=CPU
    )


def test_without_values_every_window_is_zeros() -> None:
    samples = load_windows(positions_of([(0, 0)]), np.zeros((0, 2), np.float32), device=CPU)
    found, there = samples.gather(torch.tensor([0, 0]), width=3)
    assert (found.shape, found.any().item(), there.any().item()) == ((2, 3, 2), False, False)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6),
    width=st.integers(1, 8),
    padding=st.integers(18, windows.INDEX_LIMIT),
    kind=st.sampled_from([torch.int32, torch.int64]),
)
def test_an_index_names_the_last_rows_of_each_window_and_then_the_padding(
    pairs: list[Window], width: int, padding: int, kind: torch.dtype
) -> None:
    starts, lengths = torch.tensor(pairs, dtype=kind).view(-1, 2).unbind(1)
    index, there = window_index(starts, lengths, width=width, padding=padding)
    rows = [list(range(start, start + length))[-width:] for start, length in pairs]
    assert index.tolist() == [[*row, *[padding] * (width - len(row))] for row in rows]
    assert there.tolist() == [[step < len(row) for step in range(width)] for row in rows]
    assert (index.dtype, index.shape, there.dtype) == (kind, (len(pairs), width), torch.bool)


def test_an_index_may_be_changed_without_a_trace_in_the_next() -> None:
    starts, lengths = torch.tensor([3, 5]), torch.tensor([2, 3])
    index, there = window_index(starts, lengths, width=3, padding=9)
    index.zero_()
    there.zero_()
    again, there_again = window_index(starts, lengths, width=3, padding=9)
    assert again.tolist() == [[3, 4, 9], [5, 6, 7]]
    assert there_again.tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_starts_and_lengths_may_be_of_either_integer_type(kind: torch.dtype) -> None:
    table = load_table(np.array([1, 2, 3]), device=CPU)
    found, _ = table.gather(torch.tensor([1], dtype=kind), torch.tensor([2], dtype=kind), width=3)
    assert found.tolist() == [[2, 3, 0]]


def test_values_are_loaded_in_blocks_and_arrow_need_not_copy_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "BLOCK_ROWS", 2)
    values = pa.array([1.0, 2.0, 3.0, 4.0, 5.0]).to_numpy()
    assert not values.flags.writeable
    assert load_table(values, device=CPU).rows.tolist() == [1, 2, 3, 4, 5, 0]


def test_the_vectors_of_a_memory_are_gathered_as_they_are() -> None:
    memory = MemoryPositions(
        starts=np.array([0, 0]),
        lengths=np.array([0, 2]),
        counts=np.array([0, 2]),
        vectors=np.array([[1, 2], [3, 4]], np.float32),
        partition_index=np.array([0, 1]),
        encoder_versions=pa.array([None, "v1"]),
    )
    found, there = load_windows(memory, memory.vectors, device=CPU).gather(torch.tensor([1, 0]), width=2)
    assert found.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]]]
    assert there.tolist() == [[True, True], [False, False]]


def test_windows_beyond_the_values_are_refused() -> None:
    with pytest.raises(DataSetError, match="the windows reach row 3, but there are values for 2 rows only"):
        load_windows(positions_of([(0, 1), (1, 2)]), np.zeros((2, 4), np.float32), device=CPU)


def test_more_rows_than_positions_can_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "INDEX_LIMIT", 3)
    with pytest.raises(DataSetError, match="a table of 3 rows has more than the 2 that positions can name"):
        load_table(np.zeros((3, 1), np.float32), device=CPU)
