"""Algorithm 1: what is sealed, when, and that every way of feeding a stream gives the same partitions."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.behavior import Behavior
from liber_feast.errors import ConfigError, EncoderError, InvalidBehaviors, OutOfOrderBehavior
from liber_feast.partition import (
    Condition,
    CountCondition,
    DriftCondition,
    ItemVectors,
    Partition,
    Partitioner,
    TimeCondition,
    order,
    partition_table,
    quantize,
    seal,
)
from tests.examples import at_most

START = datetime(2020, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ITEMS = ("a", "b", "c", "d", "e", "zero", "unknown")
VECTORS = ItemVectors.of(
    ITEMS[:-1],
    vectors=np.array([[1, 0, 0], [3, 0, 0], [0, 1, 0], [-1, 0, 0], [0.6, 0.8, 0.1], [0, 0, 0]], np.float32),
)


def behavior(
    second: float, *, name: str = "", item: str = "a", rating: float = 4.0, user: str | int = "ann"
) -> Behavior:
    time = START + timedelta(seconds=second)
    return Behavior(user_id=user, item_id=item, rating=rating, event_time=time, behavior_id=name or f"{second:09}")


@st.composite
def streams(draw: st.DrawFn, user: int = 0) -> list[Behavior]:
    """One user's ordered stream: many ties in time, gaps around the lengths that `conditions` draws."""
    rows = draw(st.lists(st.tuples(st.sampled_from([0, 0, 1, 1, 2, 3, 7]), st.sampled_from(ITEMS)), max_size=40))
    seconds = np.cumsum([gap for gap, _ in rows])
    names = draw(st.permutations([f"{row:02}" for row in range(len(rows))]))
    stream = [
        behavior(int(second), name=name, item=item, user=user)
        for second, name, (_, item) in zip(seconds, names, rows, strict=True)
    ]
    return sorted(stream, key=order)


counts = st.builds(CountCondition, st.integers(1, 8))
lengths = st.integers(1, 8).map(lambda seconds: seconds * SECOND)
times = st.one_of(
    st.builds(TimeCondition, span=lengths, idle=st.none()),
    st.builds(TimeCondition, span=st.none(), idle=lengths),
    st.builds(TimeCondition, span=lengths, idle=lengths),
)
drifts = st.builds(
    lambda threshold, minimum, more: DriftCondition(threshold=threshold, minimum=minimum, maximum=minimum + more),
    st.sampled_from([0, 0.1, 0.4, 1.0, 1.5, 2.0]),
    st.integers(1, 4),
    st.integers(0, 6),
)
conditions = st.one_of(counts, times, drifts)


def cut(
    stream: Sequence[Behavior], condition: Condition
) -> tuple[list[tuple[Behavior, ...]], tuple[Behavior, ...], list[Behavior]]:
    """Return the partitions, the cache, and per partition the behavior that came next (none after the last row)."""
    partitions, cache = seal(stream, condition=condition, vectors=VECTORS)
    sealed = [partition.behaviors for partition in partitions]
    ends = np.cumsum([len(behaviors) for behaviors in sealed]).tolist()
    return sealed, cache, [stream[end] for end in ends if end < len(stream)]


@given(streams(), conditions)
def test_every_behavior_is_in_exactly_one_partition_or_in_the_cache_in_order(
    stream: list[Behavior], condition: Condition
) -> None:
    partitions, cache = seal(stream, condition=condition, vectors=VECTORS, start=3)
    assert [b for partition in partitions for b in partition.behaviors] + list(cache) == stream
    assert [partition.index for partition in partitions] == list(range(3, 3 + len(partitions)))
    assert all(partition.behaviors for partition in partitions)


@given(streams(), counts)
def test_partitions_by_count_hold_exactly_size_behaviors(stream: list[Behavior], condition: CountCondition) -> None:
    sealed, cache, _ = cut(stream, condition)
    assert {len(behaviors) for behaviors in sealed} <= {condition.size}
    assert len(cache) < condition.size


@given(streams(), times)
def test_partitions_by_time_end_at_the_span_or_before_an_idle_gap_and_nowhere_else(
    stream: list[Behavior], condition: TimeCondition
) -> None:
    span, idle = condition.span or timedelta.max, condition.idle or timedelta.max

    def length(behaviors: Sequence[Behavior]) -> timedelta:
        return behaviors[-1].event_time - behaviors[0].event_time

    sealed, cache, following = cut(stream, condition)
    for behaviors in [*sealed, cache]:
        assert all(length(pair) < idle for pair in pairwise(behaviors))
        assert len(behaviors) < 2 or length(behaviors[:-1]) < span
    assert not cache or length(cache) < span
    for number, behaviors in enumerate(sealed):
        reached = length(behaviors) >= span
        assert reached or following[number].event_time - behaviors[-1].event_time >= idle


def drift_of(cache: Sequence[Behavior], new: Behavior) -> float:
    total = [sum(int(VECTORS.vector(b.item_id)[axis]) for b in cache) for axis in range(3)]
    vector = VECTORS.vector(new.item_id).tolist()
    product = sum(x * x for x in total) * sum(x * x for x in vector)
    return 1 - sum(x * y for x, y in zip(total, vector, strict=True)) / math.sqrt(product) if product else 0.0


@given(streams(), drifts)
def test_partitions_by_drift_end_before_a_distant_item_or_at_the_maximum(
    stream: list[Behavior], condition: DriftCondition
) -> None:
    sealed, cache, following = cut(stream, condition)
    for behaviors in [*sealed, cache]:
        for held in range(condition.minimum, len(behaviors)):
            assert drift_of(behaviors[:held], behaviors[held]) <= condition.threshold
    assert len(cache) < condition.maximum
    for number, behaviors in enumerate(sealed):
        if len(behaviors) != condition.maximum:
            assert condition.minimum <= len(behaviors) < condition.maximum
            assert drift_of(behaviors, following[number]) > condition.threshold


@given(streams(), conditions, st.lists(st.integers(0, 40), max_size=5))
def test_any_split_into_feeds_seals_what_one_feed_seals(
    stream: list[Behavior], condition: Condition, cuts: list[int]
) -> None:
    partitions: list[Partition] = []
    cache: tuple[Behavior, ...] = ()
    for left, right in pairwise([0, *sorted(cuts), len(stream) + 40]):
        feed = stream[left:right]
        more, cache = seal(feed, condition=condition, start=len(partitions), cache=cache, vectors=VECTORS)
        partitions += more
    assert (partitions, cache) == seal(stream, condition=condition, vectors=VECTORS)


def ordinals_of(users: list[list[Behavior]], condition: Condition) -> list[list[int]]:
    rows = [b for stream in users for b in stream]
    ordinals = partition_table(
        np.repeat(np.arange(len(users)) * 7 - 3, [len(stream) for stream in users]).astype(np.int64),
        np.array([(b.event_time - START) // timedelta(microseconds=1) for b in rows], np.int64),
        condition=condition,
        item_codes=VECTORS.codes(b.item_id for b in rows),
        item_vectors=VECTORS.table,
    )
    assert ordinals.dtype == np.int64
    ends = np.cumsum([len(stream) for stream in users])
    return [part.tolist() for part in np.split(ordinals, ends[:-1])] if users else [ordinals.tolist()]


@given(st.lists(streams(), max_size=6), conditions)
@at_most(300)
def test_the_rule_over_a_table_gives_the_partitions_of_the_rule_over_streams(
    users: list[list[Behavior]], condition: Condition
) -> None:
    expected = []
    for stream in users:
        partitions, cache = seal(stream, condition=condition, vectors=VECTORS)
        expected += [partition.index for partition in partitions for _ in partition.behaviors] + [-1] * len(cache)
    assert [ordinal for row in ordinals_of(users, condition) for ordinal in row] == expected


@given(st.lists(streams(), min_size=1, max_size=4), conditions, st.integers(0, 40))
def test_a_table_of_caches_and_what_came_after_goes_on_where_the_first_table_ended(
    users: list[list[Behavior]], condition: Condition, at: int
) -> None:
    first = ordinals_of([stream[:at] for stream in users], condition)
    kept = [
        [b for b, ordinal in zip(stream, row, strict=False) if ordinal < 0]
        for stream, row in zip(users, first, strict=True)
    ]
    second = ordinals_of([cache + stream[at:] for cache, stream in zip(kept, users, strict=True)], condition)
    for whole, before, after in zip(ordinals_of(users, condition), first, second, strict=True):
        sealed = [ordinal for ordinal in before if ordinal >= 0]
        count = max(sealed, default=-1) + 1
        assert whole == sealed + [ordinal + count if ordinal >= 0 else -1 for ordinal in after]


@given(streams(), times, st.data())
def test_a_clock_tick_before_the_next_behavior_changes_no_partition(
    stream: list[Behavior], condition: TimeCondition, data: st.DataObject
) -> None:
    partitioner = Partitioner(condition)
    sealed = []
    for earlier, later in zip([None, *stream], stream, strict=False):
        if earlier is not None:
            sealed += partitioner.seal_idle(data.draw(st.datetimes(*naive(earlier, later), timezones=st.just(UTC))))
        sealed += partitioner.append(later)
    expected, cache, _ = cut(stream, condition)
    assert (sealed, tuple(partitioner.cache)) == (expected, cache)


def naive(*behaviors: Behavior) -> list[datetime]:
    return [b.event_time.replace(tzinfo=None) for b in behaviors]


def test_a_clock_tick_seals_from_the_moment_the_idle_time_has_passed() -> None:
    partitioner = Partitioner(TimeCondition(idle=10 * SECOND), cache=[behavior(1), behavior(5)])
    assert partitioner.seal_idle(START + 14.9 * SECOND) == []
    assert partitioner.seal_idle(START + 15 * SECOND) == [(behavior(1), behavior(5))]
    assert partitioner.cache == []
    assert partitioner.seal_idle(START + 99 * SECOND) == []


@pytest.mark.parametrize(
    "condition",
    [CountCondition(3), TimeCondition(span=9 * SECOND), DriftCondition(threshold=1, minimum=1, maximum=3)],
    ids=lambda condition: condition.describe(),
)
def test_a_clock_tick_seals_nothing_without_an_idle_time(condition: Condition) -> None:
    partitioner = Partitioner(condition, vectors=VECTORS, cache=[behavior(1)])
    assert partitioner.seal_idle(START + timedelta(days=900)) == []
    assert partitioner.cache == [behavior(1)]


def test_a_drift_and_a_full_cache_seal_two_partitions_at_one_behavior() -> None:
    cache = [behavior(1, item="a"), behavior(2, item="b")]  # kept from a condition with a larger maximum
    partitioner = Partitioner(DriftCondition(threshold=0.5, minimum=1, maximum=1), vectors=VECTORS, cache=cache)
    new = behavior(3, item="c")
    assert partitioner.append(new) == [tuple(cache), (new,)]
    assert partitioner.cache == []


def test_a_smaller_size_seals_the_whole_cache_at_the_next_behavior() -> None:
    cache = [behavior(second) for second in range(5)]
    partitions, left = seal([behavior(9)], condition=CountCondition(2), cache=cache, start=4)
    assert partitions == [Partition(index=4, behaviors=(*cache, behavior(9)))]
    assert left == ()


@pytest.mark.parametrize(
    ("earlier", "later"),
    [(behavior(2), behavior(1)), (behavior(1, name="b"), behavior(1, name="a"))],
    ids=["earlier time", "smaller id at the same time"],
)
def test_a_stream_out_of_order_is_refused(earlier: Behavior, later: Behavior) -> None:
    with pytest.raises(OutOfOrderBehavior, match="Sort the stream by") as caught:
        seal([behavior(0), earlier, later], condition=CountCondition(2))
    assert (caught.value.earlier, caught.value.later) == (earlier, later)
    with pytest.raises(OutOfOrderBehavior):
        seal([later], condition=CountCondition(9), cache=[earlier])
    with pytest.raises(OutOfOrderBehavior):
        Partitioner(CountCondition(9), cache=[earlier, later])


def test_a_refused_behavior_leaves_the_cache_as_it_was() -> None:
    partitioner = Partitioner(CountCondition(2), cache=[behavior(5)])
    with pytest.raises(OutOfOrderBehavior):
        partitioner.append(behavior(4))
    assert partitioner.cache == [behavior(5)]


@pytest.mark.parametrize(
    ("users", "moments", "row"),
    [([0, 0, 0], [1, 3, 2], 2), ([0, 1, 0], [1, 2, 3], 2), ([1, 0], [1, 1], 1)],
    ids=["time", "user comes back", "user"],
)
def test_a_table_out_of_order_is_refused(users: list[int], moments: list[int], row: int) -> None:
    with pytest.raises(InvalidBehaviors, match=f"row {row} belongs before row {row - 1}") as caught:
        partition_table(np.array(users), np.array(moments), condition=CountCondition(2))
    assert caught.value.row_count == 1


@pytest.mark.parametrize(
    "condition",
    [
        CountCondition(2),
        TimeCondition(span=SECOND, idle=SECOND),
        DriftCondition(threshold=0.1, minimum=1, maximum=2),
    ],
    ids=lambda condition: condition.describe(),
)
def test_a_table_without_rows_and_one_of_one_row_have_no_partition(condition: Condition) -> None:
    for rows in (0, 1):
        empty = np.zeros(rows, np.int64)
        ordinals = partition_table(empty, empty, condition=condition, item_codes=empty, item_vectors=VECTORS.table)
        assert ordinals.tolist() == [-1] * rows
        assert ordinals.dtype == np.int64


def test_the_drift_condition_needs_quantized_item_vectors() -> None:
    condition, row = DriftCondition(threshold=0.5, minimum=1, maximum=9), np.zeros(1, np.int64)
    with pytest.raises(ConfigError, match="needs item vectors"):
        Partitioner(condition)
    with pytest.raises(ConfigError, match="needs item vectors"):
        partition_table(row, row, condition=condition, item_codes=row)
    with pytest.raises(ConfigError, match="needs item vectors"):
        partition_table(row, row, condition=condition, item_vectors=VECTORS.table)
    floats = VECTORS.table.astype(np.float32)
    with pytest.raises(ConfigError, match="float32, not int16"):
        partition_table(row, row, condition=condition, item_codes=row, item_vectors=floats)


def test_a_store_without_any_item_vector_never_drifts() -> None:
    nothing = ItemVectors.of([], vectors=np.zeros((0, 3)))
    condition = DriftCondition(threshold=0, minimum=1, maximum=2)
    partitions, cache = seal([behavior(s) for s in range(3)], condition=condition, vectors=nothing)
    assert ([len(p.behaviors) for p in partitions], len(cache)) == ([2], 1)
    ordinals = partition_table(
        np.zeros(3, np.int64),
        np.arange(3),
        condition=condition,
        item_codes=nothing.codes(["a", "b", "c"]),
        item_vectors=nothing.table,
    )
    assert ordinals.tolist() == [0, 0, -1]


@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.integers(-100, 100), min_size=3, max_size=3).filter(any))
def test_parallel_items_never_drift_and_opposite_ones_drift_by_two(held: int, scale: int, vector: list[int]) -> None:
    rows = np.array([vector, [scale * x for x in vector], [-x for x in vector]], float)
    vectors = ItemVectors.of(["a", "b", "c"], vectors=rows)
    cache = [behavior(second, item="a") for second in range(held)]
    for item, threshold, drifts_away in (("b", 0, False), ("c", 1.999999, True), ("c", 2, False)):
        condition = DriftCondition(threshold=threshold, minimum=1, maximum=100)
        sealed = Partitioner(condition, vectors=vectors, cache=cache).append(behavior(99, item=item))
        assert bool(sealed) is drifts_away


@pytest.mark.parametrize("row", [np.eye(1, 384)[0], np.ones(384)], ids=["one axis", "all axes"])
def test_the_longest_drift_partition_is_summed_exactly(row: np.ndarray) -> None:
    size = 10_000
    vectors = ItemVectors.of(["a", "far"], vectors=np.stack([row, -row]))
    squared = sum(int(x) ** 2 for x in vectors.table[0])
    assert size * size * squared < 2**53  # a float64 holds it, so an int64 does
    condition = DriftCondition(threshold=1.999999, minimum=size - 1, maximum=size)
    for is_far in (False, True):
        codes = np.zeros(size, np.int64)
        codes[-1] = is_far
        ordinals = partition_table(
            np.zeros(size, np.int64), np.arange(size), condition=condition, item_codes=codes, item_vectors=vectors.table
        )
        assert ordinals.tolist() == [0] * (size - 1) + [-1 if is_far else 0]
    cache = [behavior(second) for second in range(size - 1)]
    assert Partitioner(condition, vectors=vectors, cache=cache).append(behavior(size, item="far")) == [tuple(cache)]


@given(
    st.integers(1, 40).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(-1e6, 1e6, width=32), min_size=width, max_size=width), min_size=1, max_size=8
        )
    )
)
def test_a_vector_is_quantized_alike_alone_and_among_others(rows: list[list[float]]) -> None:
    together = quantize(np.array(rows, np.float32))
    assert together.dtype == np.int16
    assert together.tolist() == [quantize(np.array([row], np.float32))[0].tolist() for row in rows]
    assert quantize(np.asfortranarray(rows)).tolist() == together.tolist()
    norms = np.sqrt((together.astype(float) ** 2).sum(axis=1))
    assert all(
        not row.any() or abs(norm - 4096) <= math.sqrt(len(row)) for row, norm in zip(together, norms, strict=True)
    )


def test_item_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EncoderError, match=r"row 1 is not finite \(2 such rows\)"):
        quantize(np.array([[1.0], [np.nan], [np.inf]]))
