import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.errors import ConfigError, DataSetError
from training.protocol import FINAL, blocks, history_groups
from training.split import split_by_time


def test_the_folds_and_the_final_block_are_the_tenths_that_the_module_draws() -> None:
    found = blocks(np.arange(1_000), folds=3)
    bounds = {block.name: [(part[0], part[-1] + 1) for part in block.split.parts().values()] for block in found}
    assert bounds == {
        "fold 1": [(0, 500), (500, 600), (600, 700)],
        "fold 2": [(0, 600), (600, 700), (700, 800)],
        "fold 3": [(0, 700), (700, 800), (800, 900)],
        "final": [(0, 800), (800, 900), (900, 1_000)],
    }
    assert [block.is_final for block in found] == [False, False, False, True]


@given(times=st.lists(st.integers(0, 40), min_size=60, max_size=200), folds=st.integers(1, 4), seed=st.integers(0, 9))
def test_no_part_reaches_into_the_next_and_no_fold_sees_the_final_test(times: list[int], folds: int, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(np.array(times, np.int64))
    try:
        found = blocks(shuffled, folds=folds)
    except DataSetError:
        return
    final = set(found[-1].split.test.tolist())
    tested: set[int] = set()
    for block in found:
        split = block.split
        assert shuffled[split.train].max() < shuffled[split.validation].min()
        assert shuffled[split.validation].max() < shuffled[split.test].min()
        assert not tested & set(split.test.tolist())
        tested |= set(split.test.tolist())
        if block.name != FINAL:
            assert not final & {row for part in split.parts().values() for row in part.tolist()}


def test_the_final_block_is_the_split_that_a_fit_has() -> None:
    times = np.random.default_rng(0).integers(0, 500, 2_000)
    final, expected = blocks(times, folds=2)[-1].split.parts(), split_by_time(times).parts()
    for name, rows in expected.items():
        np.testing.assert_array_equal(final[name], rows)


@pytest.mark.parametrize("folds", [0, 8])
def test_a_number_of_folds_that_cannot_be_is_refused(folds: int) -> None:
    with pytest.raises(ConfigError, match=f"{folds} folds: there can be 1 to 7"):
        blocks(np.arange(100), folds=folds)


@pytest.mark.parametrize("times", [[], [5] * 100, [1, 2, 3]], ids=["none", "one time", "few"])
def test_samples_that_do_not_fill_a_block_are_refused(times: list[int]) -> None:
    with pytest.raises(DataSetError, match="give fold 1 no train, stop and test part"):
        blocks(np.array(times, np.int64), folds=3)


def test_history_groups_part_the_samples() -> None:
    counts = np.array([0, 1, 20, 21, 100, 101, 300, 301, 9_999])
    groups = history_groups(counts)
    assert {name: counts[rows].tolist() for name, rows in groups.items()} == {
        "0": [0],
        "1-20": [1, 20],
        "21-100": [21, 100],
        "101-300": [101, 300],
        "over 300": [301, 9_999],
    }
