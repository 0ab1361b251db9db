import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.errors import DataSetError
from training.split import check_classes, split_by_time

TIMES = st.lists(st.integers(0, 30), min_size=1, max_size=80)


@given(TIMES)
def test_every_sample_is_in_one_part_and_no_time_is_in_two(times: list[int]) -> None:
    found = np.array(times, np.int64)
    try:
        split = split_by_time(found)
    except DataSetError:
        # Then a boundary of the 80 % or 90 % falls into the first time, or both into one.
        ordered = np.sort(found)
        assert ordered[int(len(found) * 0.8)] in {ordered[0], ordered[int(len(found) * 0.9)]}
        return
    parts = list(split.parts().values())
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(times)))
    assert found[parts[0]].max() < found[parts[1]].min()
    assert found[parts[1]].max() < found[parts[2]].min()
    assert len(parts[2]) >= len(times) // 10


def test_distinct_times_are_cut_at_80_and_90_percent() -> None:
    split = split_by_time(np.arange(1_000)[::-1])
    assert {name: len(rows) for name, rows in split.parts().items()} == {"train": 800, "validation": 100, "test": 100}
    assert split.test.tolist() == list(range(99, -1, -1))


@pytest.mark.parametrize("times", [[], [1], [1, 2], [5] * 100], ids=["none", "one", "two", "one time"])
def test_samples_that_cannot_be_split_are_refused(times: list[int]) -> None:
    with pytest.raises(DataSetError, match=f"{len(times)} samples at"):
        split_by_time(np.array(times, np.int64))


def test_a_part_of_one_class_is_refused_by_name() -> None:
    split = split_by_time(np.arange(100))
    labels = np.arange(100) % 2 == 0
    check_classes(labels, split=split, like_above=3.0)
    labels[80:90] = True
    with pytest.raises(DataSetError, match="validation part has one class only: 10 likes among 10 samples"):
        check_classes(labels, split=split, like_above=3.0)
