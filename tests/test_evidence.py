"""Evidence is the mean of signed item vectors; running values are those of all partitions before, to the last bit."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from liber_feast.evidence import PartitionEvidence, item_text, memory_evidence, partition_evidence
from liber_feast.interest import Item

WIDTH = 3
VECTORS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.just(WIDTH)),
    elements=st.floats(-4, 4, width=32, allow_subnormal=False),
)


@st.composite
def rated(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    vectors = draw(VECTORS)
    liked = draw(arrays.arrays(np.bool_, len(vectors)))
    return vectors, liked


PARTITIONS = st.lists(rated(), min_size=1, max_size=8)


def exact(values: npt.NDArray[np.float32]) -> list[list[Fraction]]:
    return [[Fraction(float(value)) for value in row] for row in values]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (
            Item(item_id=1, title="Heat (1995)", categories=("Action", "Crime"), period="1990s"),
            "Heat (1995). Action, Crime. 1990s.",
        ),
        (Item(item_id=1, title="Heat"), "Heat."),
        (Item(item_id=1, categories=("Action",), period="1990s"), "Action. 1990s."),
        (Item(item_id=1, title=" ", period="1990s"), "1990s."),
        (Item(item_id=1, title="Monsters, Inc.", period="2000s"), "Monsters, Inc. 2000s."),
        (Item(item_id=1, attributes={"creator": "Mann"}), ""),
        (Item(item_id=1), ""),
    ],
    ids=[
        "all",
        "a title alone",
        "no title",
        "a blank title",
        "a title with a dot",
        "other attributes alone",
        "nothing",
    ],
)
def test_an_items_text_has_what_is_known_of_it(item: Item, text: str) -> None:
    assert item_text(item) == text


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Item(item_id=1, title="Heat (1995)", categories=("Action", "Crime"), period="1990s"), "Action, Crime. 1990s."),
        (Item(item_id=1, title="Heat", categories=("Action",)), "Action."),
        (Item(item_id=1, title="Heat", period="1990s"), "Heat. 1990s."),
        (Item(item_id=1), ""),
    ],
    ids=["all", "no period", "no categories", "nothing"],
)
def test_a_text_of_categories_has_no_title_unless_there_is_nothing_else(item: Item, text: str) -> None:
    assert item_text(item, form="categories") == text


@given(rated())
def test_the_evidence_of_a_partition_is_the_mean_of_its_signed_vectors(
    behaviors: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]],
) -> None:
    vectors, liked = behaviors
    found = partition_evidence(vectors, liked=liked)
    rate = Fraction(int(liked.sum()), len(liked))
    assert found.behavior_count == len(liked)
    assert found.like_rate == float(rate)
    expected = [
        sum((int(y) - rate) * row[place] for y, row in zip(liked, exact(vectors), strict=True)) / len(liked)
        for place in range(WIDTH)
    ]
    np.testing.assert_allclose(found.evidence, np.array(expected, np.float64), rtol=1e-6, atol=1e-12)


@given(PARTITIONS)
def test_running_values_are_means_over_all_behaviors_so_far(
    partitions: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]],
) -> None:
    found = [partition_evidence(vectors, liked=liked) for vectors, liked in partitions]
    running = memory_evidence(found)
    for place in range(len(found)):
        so_far = found[: place + 1]
        count = sum(one.behavior_count for one in so_far)
        assert running.behavior_counts[place] == count
        assert running.like_rates[place] == sum(one.like_count for one in so_far) / count
        total = np.zeros(WIDTH)
        for one in so_far:
            total = total + one.signed_sum
        assert running.evidence[place].tolist() == (total / count).astype(np.float32).tolist()


@given(PARTITIONS, st.integers(1, 8))
def test_a_later_partition_changes_no_bit_of_an_earlier_row(
    partitions: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]], cut: int
) -> None:
    found = [partition_evidence(vectors, liked=liked) for vectors, liked in partitions]
    whole, start = memory_evidence(found), memory_evidence(found[:cut])
    count = len(start.behavior_counts)
    assert start.evidence.tobytes() == whole.evidence[:count].tobytes()
    assert start.like_rates.tobytes() == whole.like_rates[:count].tobytes()


def test_behaviors_are_added_one_after_the_other() -> None:
    vectors = np.array([[1e8], [1.0], [-1e8], [1.0]] * 5, np.float32)
    liked = np.array([True, False] * 10)
    total = 0.0
    for value, is_liked in zip(vectors[:, 0].tolist(), liked.tolist(), strict=True):
        total += (is_liked - 0.5) * value
    assert partition_evidence(vectors, liked=liked).signed_sum.tolist() == [total]


@pytest.mark.parametrize("liked", [True, False], ids=["all liked", "none liked"])
def test_a_partition_without_contrast_says_nothing_but_its_like_rate(liked: bool) -> None:
    found = partition_evidence(np.ones((4, WIDTH), np.float32), liked=np.full(4, liked))
    assert found.evidence.tolist() == [0.0] * WIDTH
    assert found.like_rate == float(liked)


def test_an_item_without_a_vector_counts_and_says_nothing() -> None:
    vectors = np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]], np.float32)
    found = partition_evidence(vectors, liked=np.array([True, True, False]))
    assert (found.behavior_count, found.like_count) == (3, 2)
    np.testing.assert_allclose(found.evidence, [2 / 9, -4 / 9], rtol=1e-6)


def test_one_partition_is_its_own_memory() -> None:
    one = PartitionEvidence(behavior_count=4, like_count=1, signed_sum=np.array([0.5, -1.5]))
    running = memory_evidence([one])
    assert running.evidence.tolist() == [one.evidence.tolist()]
    assert running.like_rates.tolist() == [0.25]
