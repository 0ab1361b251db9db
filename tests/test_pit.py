from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from liber_feast.pit import (
    HIGHEST,
    LOWEST,
    NO_ROW,
    Ints,
    Windows,
    as_of,
    finer,
    key_codes,
    last_visible,
    order_by,
    paired,
    ranges,
    rescale,
    slices,
)

FAR = [2**61 - 1, 2**61, 2**62 - 1]
GROUPS = st.integers(0, 3) | st.sampled_from(FAR)
NARROW = st.integers(-4, 6)
WIDE = NARROW | st.sampled_from([LOWEST, LOWEST + 1, -(2**61), 2**61, HIGHEST])
Row = tuple[int, int, int, int]
Query = tuple[int, int]
ROWS = st.lists(st.tuples(GROUPS, WIDE, NARROW, NARROW), max_size=25)
QUERIES = st.lists(st.tuples(st.integers(-1, 4) | st.sampled_from(FAR), WIDE), max_size=12)


def ints(values: Sequence[int]) -> Ints:
    return np.array(values, np.int64)


def columns(rows: list[Row]) -> list[Ints]:
    return [ints([row[place] for row in rows]) for place in range(4)]


@given(ROWS, QUERIES)
@example([(0, HIGHEST, 0, 0), (1, LOWEST, 0, 0)], [(0, HIGHEST), (1, LOWEST), (1, LOWEST + 1)])
@example([(0, 1, 0, 0), (2**61, 0, 0, 0)] + [(1, time, 0, 0) for time in range(5)], [(0, 2), (2**61, 0)])
def test_as_of_finds_the_last_row_by_time_then_created_then_position(rows: list[Row], queries: list[Query]) -> None:
    groups, times, created, _ = columns(rows)
    found = as_of(
        groups,
        times,
        query_groups=ints([group for group, _ in queries]),
        query_times=ints([time for _, time in queries]),
        created=created,
    )
    for position, (group, time) in zip(found.tolist(), queries, strict=True):
        fits = [place for place, row in enumerate(rows) if group >= 0 and row[0] == group and row[1] <= time]
        assert position == max(fits, key=lambda place: (*rows[place][1:3], place), default=NO_ROW)


@given(ROWS, QUERIES)
def test_without_created_times_the_later_row_wins_a_tie(rows: list[Row], queries: list[Query]) -> None:
    groups, times, *_ = columns(rows)
    found = as_of(groups, times, query_groups=ints([q[0] for q in queries]), query_times=ints([q[1] for q in queries]))
    for position, (group, time) in zip(found.tolist(), queries, strict=True):
        fits = [place for place, row in enumerate(rows) if group >= 0 and row[0] == group and row[1] <= time]
        assert position == max(fits, key=lambda place: (rows[place][1], place), default=NO_ROW)


@given(ROWS, QUERIES)
def test_as_of_sees_no_row_before_it_is_visible(rows: list[Row], queries: list[Query]) -> None:
    groups, times, created, seen = columns(rows)
    found = as_of(
        groups,
        times,
        query_groups=ints([group for group, _ in queries]),
        query_times=ints([time for _, time in queries]),
        created=created,
        visible_from=seen,
    )
    for position, (group, time) in zip(found.tolist(), queries, strict=True):
        fits = [place for place, row in enumerate(rows) if group >= 0 and row[0] == group and row[3] <= time]
        assert position == max(fits, key=lambda place: (*rows[place][1:3], place), default=NO_ROW)


def windows_of(windows: Windows) -> list[list[int]]:
    return [windows.rows[a:b].tolist() for a, b in zip(windows.starts, windows.stops, strict=True)]


@given(ROWS, QUERIES, st.integers(1, 4), st.booleans())
def test_windows_hold_the_last_visible_rows_in_order(
    rows: list[Row], queries: list[Query], length: int, in_order: bool
) -> None:
    groups, times, place_in_group, _ = columns(rows)
    order = np.lexsort((place_in_group, times, groups)) if in_order else np.lexsort((place_in_group, groups))
    windows = last_visible(
        groups,
        order=order,
        visible_from=times,
        query_groups=ints([group for group, _ in queries]),
        query_times=ints([time for _, time in queries]),
        length=length,
    )
    visible = [[p for p in order.tolist() if rows[p][0] == g and rows[p][1] <= t] for g, t in queries]
    assert windows_of(windows) == [fits[-length:] for fits in visible]
    assert windows.counts.tolist() == [len(fits) for fits in visible]
    assert windows.newest.tolist() == [fits[-1] if fits else NO_ROW for fits in visible]


@given(ROWS, QUERIES, st.integers(1, 3))
def test_of_rows_with_one_label_a_window_holds_the_last_visible(
    rows: list[Row], queries: list[Query], length: int
) -> None:
    groups, times, labels, created = columns(rows)
    order = np.lexsort((created, labels, groups))
    windows = last_visible(
        groups,
        order=order,
        visible_from=times,
        query_groups=ints([group for group, _ in queries]),
        query_times=ints([time for _, time in queries]),
        length=length,
        labels=labels,
    )
    expected = []
    for group, time in queries:
        by_label = {rows[p][2]: p for p in order.tolist() if rows[p][0] == group and rows[p][1] <= time}
        expected.append(list(by_label.values())[-length:])
    assert windows_of(windows) == expected


@given(ROWS, QUERIES, st.integers(1, 3), st.booleans())
def test_only_windows_of_groups_that_show_out_of_order_have_rows_of_their_own(
    rows: list[Row], queries: list[Query], length: int, labeled: bool
) -> None:
    groups, times, labels, created = columns(rows)
    in_order = {0, 2, 2**61}
    order = np.lexsort((created, np.where(np.isin(groups, list(in_order)), times, labels), groups))
    labels = np.where(np.isin(groups, list(in_order)), np.arange(len(rows)), labels)
    windows = last_visible(
        groups,
        order=order,
        visible_from=times,
        query_groups=ints([group for group, _ in queries]),
        query_times=ints([time for _, time in queries]),
        length=length,
        labels=labels if labeled else None,
    )
    expected, counts = [], []
    for group, time in queries:
        visible = [p for p in order.tolist() if rows[p][0] == group and rows[p][1] <= time]
        kept = list({labels[p]: p for p in visible}.values()) if labeled else visible
        expected.append(kept[-length:])
        counts.append(len(kept))
    assert (windows_of(windows), windows.counts.tolist()) == (expected, counts)
    plain = [place for place in windows.rows.tolist() if rows[place][0] in in_order]
    assert plain == [place for place in order.tolist() if rows[place][0] in in_order]


def test_one_group_that_shows_late_repeats_its_own_rows_alone() -> None:
    groups, times = ints([0, 0, 0, 1, 1, 2, 2]), ints([1, 2, 3, 2, 1, 5, 6])
    asked = ints([0, 0, 1, 1, 2, 2])
    windows = last_visible(
        groups,
        order=np.arange(7),
        visible_from=times,
        query_groups=asked,
        query_times=ints([2, 3, 2, 2, 5, 6]),
        length=2,
    )
    assert windows_of(windows) == [[0, 1], [1, 2], [3, 4], [3, 4], [5], [5, 6]]
    assert windows.rows.tolist() == [0, 1, 2, 5, 6, 3, 4, 3, 4]


def test_an_emptied_window_has_no_rows_and_counts_none() -> None:
    windows = Windows(rows=ints([4, 7]), starts=ints([0, 1]), stops=ints([2, 2]), counts=ints([9, 1]))
    kept = windows.without(np.array([True, False]))
    assert windows_of(kept) == [[], [7]]
    assert kept.counts.tolist() == [0, 1]
    assert kept.newest.tolist() == [NO_ROW, 7]


@given(st.integers(LOWEST, HIGHEST), st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from(["s", "ms", "us", "ns"]))
def test_rescaled_times_are_floored_or_saturated(time: int, source: str, target: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    exact, rest = divmod(time * per_second[target], per_second[source])
    down, up = (int(rescale(ints([time]), source=source, target=target, up=flag)[0]) for flag in (False, True))
    factor = max(per_second[target] // per_second[source], 1)
    assert down == max(
        min(exact, HIGHEST // factor * factor), (LOWEST // factor + 1) * factor if factor > 1 else LOWEST
    )
    assert up == (exact + (rest > 0) if factor == 1 else down)


def test_the_finer_of_two_units_has_more_ticks() -> None:
    assert (finer("s", "us"), finer("ns", "ms"), finer("us", "us")) == ("us", "ns", "us")


TEXT = st.none() | st.sampled_from(["a", "b", "", "ab"])
NUMBER = st.none() | st.integers(-1, 2)
KEYS = st.lists(st.tuples(TEXT, NUMBER, TEXT), max_size=12)


@given(KEYS, KEYS, st.sampled_from([4, 1 << 62]))
def test_rows_share_a_group_exactly_when_all_their_keys_are_equal(
    entity: list[tuple[str | None, int | None, str | None]],
    source: list[tuple[str | None, int | None, str | None]],
    limit: int,
) -> None:
    kinds = (pa.string(), pa.int64(), pa.string())
    sides = [
        [pa.array([row[place] for row in rows], kind) for place, kind in enumerate(kinds)] for rows in (entity, source)
    ]
    entity_groups, source_groups = key_codes(*sides, limit=limit)
    for row, group in zip(entity, entity_groups, strict=True):
        assert (group == -1) == (None in row)
        assert group == -1 or [key for key, other in zip(source, source_groups, strict=True) if other == group] == [
            key for key in source if key == row
        ]
        assert group == -1 or all(
            (key == row) == (other == group) for key, other in zip(entity, entity_groups, strict=True)
        )
    for row, group in zip(source, source_groups, strict=True):
        assert (group in entity_groups and group >= 0) == (row in entity and None not in row)


def test_a_key_of_four_columns_finds_every_row() -> None:
    """Two rows of each of 32,768 values: their codes go up to 2^60, and times of no common step follow each other."""
    count = 1 << 15
    once, again = np.arange(count), np.roll(np.arange(count), -16)
    columns = [pa.array(np.concatenate([once, again]))] + [pa.array(np.concatenate([once, once]))] * 3
    times = np.concatenate([once, once]) % (count - 1) * 1_000_003
    entity_groups, groups = key_codes(columns, columns)
    found = as_of(groups, times, query_groups=entity_groups, query_times=times)
    assert found.tolist() == list(range(2 * count))


@given(st.lists(st.tuples(GROUPS, st.integers(0, 3)), max_size=12))
def test_a_pair_of_group_and_code_is_a_group_in_their_order(pairs: list[tuple[int, int]]) -> None:
    found = paired(ints([group for group, _ in pairs]), ints([code for _, code in pairs])).tolist()
    assert all(group >= 0 for group in found)
    for pair, group in zip(pairs, found, strict=True):
        for other, its_group in zip(pairs, found, strict=True):
            assert (pair < other, pair == other) == (group < its_group, group == its_group)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=10))
def test_ranges_are_laid_end_to_end(pairs: list[tuple[int, int]]) -> None:
    starts, stops = ints([a for a, _ in pairs]), ints([a + n for a, n in pairs])
    offsets, flat = ranges(starts, stops)
    assert [flat[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == [
        list(range(a, a + n)) for a, n in pairs
    ]


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 12))
def test_slices_cover_everything_once_and_stay_within_the_limit(sizes: list[int], limit: int) -> None:
    found = list(slices(ints(sizes), limit=limit))
    assert [place for part in found for place in range(len(sizes))[part]] == list(range(len(sizes)))
    assert all(sum(sizes[part]) <= limit or len(sizes[part]) == 1 for part in found)


@given(ROWS)
def test_order_is_by_group_then_time_then_position(rows: list[Row]) -> None:
    groups, times, *_ = columns(rows)
    assert order_by(groups, times).tolist() == sorted(range(len(rows)), key=lambda place: (*rows[place][:2], place))


@given(ROWS, QUERIES, st.sampled_from([10**6, 10**9, 2**50]), st.integers(-1, 1))
def test_times_in_coarse_steps_are_joined_like_any_others(
    rows: list[Row], queries: list[Query], step: int, offset: int
) -> None:
    rows = [(group % 4, *rest) for group, *rest in rows]
    groups, _, times, created = columns(rows)
    asked = [(min(group, 4), (time % 12 - 4) * step + offset) for group, time in queries]
    found = as_of(
        groups * 1_000_000,
        times * step,
        query_groups=ints([max(group * 1_000_000, -1) for group, _ in asked]),
        query_times=ints([time for _, time in asked]),
        created=created,
    )
    for position, (group, time) in zip(found.tolist(), asked, strict=True):
        fits = [place for place, row in enumerate(rows) if group >= 0 and row[0] == group and row[2] * step <= time]
        assert position == max(fits, key=lambda place: (*rows[place][2:4], place), default=NO_ROW)
