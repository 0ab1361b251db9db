"""Point-in-time joins on sorted integer keys.

Rows belong to groups (the code of an entity key) and become visible at a time; a query names a group and a time and
may use what is visible at or before it. Group and time together make one narrow integer, so a join is one sort
and one binary search for all queries, whatever the length of a history; wide columns are gathered once, afterwards.

Groups are int64 codes from 0, times int64 in any one unit; a query of group -1 finds nothing. "Strictly before t" is
"at or before t - 1" in the unit of t. No product of groups is taken unchecked: those that are too far apart for it are
replaced by their ranks. Positions are positions of rows, `NO_ROW` where there is none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NO_ROW = -1
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
LOWEST, HIGHEST = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)
KEY_LIMIT = 1 << 62
"""Composite keys stay below this; wider ranges of times are replaced by their ranks."""
SCATTER_LIMIT = 1 << 22
"""Rows looked at at once where windows are not contiguous; bounds the memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Windows:
    """Window q is `rows[starts[q]:stops[q]]`, positions of source rows in order; empty where nothing is visible.

    `counts[q]` is how many rows were visible before the window was cut to its length.
    """

    rows: Ints
    starts: Ints
    stops: Ints
    counts: Ints

    @property
    def newest(self) -> Ints:
        """The position of the last row of each window, NO_ROW where it is empty."""
        if not len(self.rows):
            return np.full(len(self.stops), NO_ROW, np.int64)
        return np.where(self.stops > self.starts, self.rows[np.maximum(self.stops, 1) - 1], NO_ROW)

    def without(self, gone: Flags) -> "Windows":
        """Return the windows with those marked `gone` emptied."""
        return Windows(
            rows=self.rows,
            starts=self.starts,
            stops=np.where(gone, self.starts, self.stops),
            counts=np.where(gone, 0, self.counts),
        )

    def replaced(self, places: Flags, others: "Windows") -> "Windows":
        """Return the windows with those at `places` exchanged for the `others`, whose rows follow these rows."""
        starts, stops, counts = self.starts.copy(), self.stops.copy(), self.counts.copy()
        starts[places], stops[places] = others.starts + len(self.rows), others.stops + len(self.rows)
        counts[places] = others.counts
        return Windows(rows=np.concatenate([self.rows, others.rows]), starts=starts, stops=stops, counts=counts)


def rescale(times: Ints, *, source: str, target: str, up: bool = False) -> Ints:
    """Return `times` in another unit: floored (or with `up` ceiled) into a coarser, saturated into a finer one."""
    factor, divisor = PER_SECOND[target] // PER_SECOND[source], PER_SECOND[source] // PER_SECOND[target]
    if factor > 1:
        return np.clip(times, LOWEST // factor + 1, HIGHEST // factor) * factor
    if divisor > 1:
        return times // divisor + (times % divisor > 0) if up else times // divisor
    return times


def finer(first: str, second: str) -> str:
    """Return the finer of two time units."""
    return max(first, second, key=PER_SECOND.__getitem__)


def as_of(
    groups: Ints,
    times: Ints,
    *,
    query_groups: Ints,
    query_times: Ints,
    created: Ints | None = None,
    visible_from: Ints | None = None,
) -> Ints:
    """Return for each query the position of the last row of its group that is visible at or before its time.

    The last row is the one with the greatest (time, created, position). A row is visible from its own time, or
    from `visible_from` where that is given (for example not before it was created).
    """
    ranks = (times,) if created is None else (created, times)
    seen = times if visible_from is None else visible_from
    keys, wanted = _composite(groups, seen, query_groups=query_groups, query_times=query_times)
    if visible_from is None:
        order = np.lexsort((*ranks[:-1], keys))
        best = order
    else:
        # Ranks grow from group to group, so the running maximum never carries a row over into the next group.
        by_rank = np.lexsort((*ranks, groups))
        rank_of = np.empty(len(groups), np.int64)
        rank_of[by_rank] = np.arange(len(groups))
        order = np.argsort(keys, kind="stable")
        best = by_rank[np.maximum.accumulate(rank_of[order])] if len(order) else order
    if not len(order):
        return np.full(len(query_groups), NO_ROW, np.int64)
    found = np.searchsorted(keys[order], wanted, side="right") - 1
    positions = best[found]
    return np.where((found >= 0) & (query_groups >= 0) & (groups[positions] == query_groups), positions, NO_ROW)


def last_visible(
    groups: Ints,
    *,
    order: Ints,
    visible_from: Ints,
    query_groups: Ints,
    query_times: Ints,
    length: int,
    labels: Ints | None = None,
) -> Windows:
    """Return for each query the last `length` rows of its group that are visible at or before its time.

    `order` has the positions of the rows that take part, by (group, the order within the group); `visible_from` is
    one time per row. Rows of one group and label, adjacent in `order`, replace each other: the last visible counts.

    Where the rows of a group become visible in their order, its windows are slices of that order. The windows of
    the other groups follow with rows of their own: only there is a row repeated, once per window that holds it.
    """
    is_last = np.ones(len(order), bool)
    if labels is not None:
        is_last[:-1] = (np.diff(groups[order]) != 0) | (np.diff(labels[order]) != 0)
    late = _late_groups(groups[order], seen=visible_from[order], is_last=is_last)
    rows, kept = order[:0], order if labels is None else order[is_last]
    is_late = np.zeros(len(query_groups), bool)
    if len(late):
        rows, kept = order[np.isin(groups[order], late)], kept[np.isin(groups[kept], late, invert=True)]
        is_late = np.isin(query_groups, late)
    plain = _sliced(
        kept,
        groups=groups[kept],
        seen=visible_from[kept],
        query_groups=np.where(is_late, -1, query_groups),
        query_times=query_times,
        length=length,
    )
    if not is_late.any():
        return plain
    wanted = query_groups[is_late]
    scattered = _scattered(
        rows,
        seen=visible_from[rows],
        bounds=(
            np.searchsorted(groups[rows], wanted, side="left"),
            np.searchsorted(groups[rows], wanted, side="right"),
        ),
        query_times=query_times[is_late],
        length=length,
        labels=None if labels is None else labels[rows],
    )
    return plain.replaced(is_late, scattered)


def paired(groups: Ints, codes: Ints) -> Ints:
    """Return one group per (group, code), in the order of these pairs; codes count from 0."""
    size = int(codes.max(initial=0)) + 1
    if (int(groups.max(initial=0)) + 1) * size >= KEY_LIMIT:
        groups = _dense(groups, groups)[0]
    return groups * size + codes


def order_by(groups: Ints, times: Ints) -> Ints:
    """Return positions by (group, time, position)."""
    keys, _ = _composite(groups, times, query_groups=np.zeros(0, np.int64), query_times=np.zeros(0, np.int64))
    return np.argsort(keys, kind="stable")


def ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Return offsets (Q + 1) and all integers of the ranges [starts, stops), one range after the other."""
    offsets: Ints = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(stops - starts, out=offsets[1:])
    filled = stops > starts
    # The sum of steps of one with a jump at each start: np.repeat of the starts takes ten times as long.
    steps: Ints = np.ones(offsets[-1], np.int64)
    steps[offsets[:-1][filled]] = starts[filled] - np.append(1, stops[filled][:-1]) + 1
    return offsets, np.cumsum(steps, out=steps)


def slices(sizes: Ints, *, limit: int) -> Iterator[slice]:
    """Yield slices over `sizes` whose sums stay at or below `limit`, or hold one element."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        base = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, base + limit, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def key_codes(
    entity_keys: Sequence[pa.Array], source_keys: Sequence[pa.Array], *, limit: int = KEY_LIMIT
) -> tuple[Ints, Ints]:
    """Return the group of every entity row and of every source row by one or more key columns of equal types.

    Rows with equal keys share a group. -1 stands for a null key, and on the source side for a value that no entity row
    has in that column.
    `limit` is where the product of the columns' sizes is made dense again; there must be at least one column.
    """
    entity_codes, source_codes, size = _column_codes(entity_keys[0], source_keys[0])
    for entity_key, source_key in zip(entity_keys[1:], source_keys[1:], strict=True):
        entity_next, source_next, next_size = _column_codes(entity_key, source_key)
        if size * next_size >= limit:
            entity_codes, source_codes, size = _dense(entity_codes, source_codes)
        entity_codes = np.where((entity_codes < 0) | (entity_next < 0), -1, entity_codes * next_size + entity_next)
        source_codes = np.where((source_codes < 0) | (source_next < 0), -1, source_codes * next_size + source_next)
        size *= next_size
    return entity_codes, source_codes


def _column_codes(entity_key: pa.Array, source_key: pa.Array) -> tuple[Ints, Ints, int]:
    encoded = entity_key.dictionary_encode()
    found = pc.index_in(source_key, value_set=encoded.dictionary, skip_nulls=True)
    return _codes(encoded.indices), _codes(found), max(len(encoded.dictionary), 1)


def _codes(indices: pa.Array) -> Ints:
    codes: Ints = pc.fill_null(indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _dense(codes: Ints, others: Ints) -> tuple[Ints, Ints, int]:
    """Return `codes` as their ranks, `others` as the ranks of equal codes or -1, and how many ranks there are."""
    levels = np.unique(codes[codes >= 0])
    if not len(levels):
        return np.full_like(codes, -1), np.full_like(others, -1), 1
    place = np.minimum(np.searchsorted(levels, others), len(levels) - 1)
    dense_others = np.where(levels[place] == others, place, -1)
    return np.where(codes < 0, -1, np.searchsorted(levels, codes)), dense_others, len(levels)


def _composite(groups: Ints, seen: Ints, *, query_groups: Ints, query_times: Ints) -> tuple[Ints, Ints]:
    """Return one integer per row and per query, ordered as (group, time); a query sorts after what it may see."""
    if not len(groups):
        return np.zeros(0, np.int64), query_groups
    low, high, most = int(seen.min()), int(seen.max()), int(max(groups.max(), query_groups.max(initial=0)))
    step = 1
    if low > LOWEST and (most + 1) * (high - low + 2) >= KEY_LIMIT and high - low <= HIGHEST:
        step = int(np.gcd.reduce(seen - low)) or 1  # times in whole seconds need no microseconds
    size = (high - low) // step + 2
    if (most + 1) * size >= KEY_LIMIT and most >= len(groups):  # else the ranks of times make it fit
        groups, query_groups, count = _dense(groups, query_groups)
        most = count - 1
    if low > LOWEST and (most + 1) * size < KEY_LIMIT:
        ticks = np.clip(query_times, low - 1, high) - low
        row_ticks, query_ticks = (seen - low, ticks) if step == 1 else ((seen - low) // step, ticks // step)
        return groups * size + row_ticks + 1, query_groups * size + query_ticks + 1
    levels = np.unique(seen)
    size = len(levels) + 1
    row_keys: Ints = groups * size + np.searchsorted(levels, seen) + 1
    return row_keys, query_groups * size + np.searchsorted(levels, query_times, side="right")


def _late_groups(groups: Ints, *, seen: Ints, is_last: Flags) -> Ints:
    """Return the groups, each once, where a row shows before one ahead of it or before the one that replaces it.

    `is_last` marks in each run of rows that replace each other the one that stays.
    """
    kept_groups, kept_seen = groups[is_last], seen[is_last]
    overtakes = (kept_groups[1:] == kept_groups[:-1]) & (kept_seen[1:] < kept_seen[:-1])
    late = kept_groups[1:][overtakes]
    if not is_last.all():
        gone = np.flatnonzero(~is_last)
        replacing = np.searchsorted(np.flatnonzero(is_last), gone)
        late = np.append(late, groups[gone][kept_seen[replacing] > seen[gone]])
    return np.unique(late)


def _sliced(rows: Ints, *, groups: Ints, seen: Ints, query_groups: Ints, query_times: Ints, length: int) -> Windows:
    """Find windows as slices of `rows`, which are by (group, time): what is visible is the start of its group."""
    if not len(rows):
        nothing: Ints = np.zeros(len(query_groups), np.int64)
        return Windows(rows=rows, starts=nothing, stops=nothing, counts=nothing)
    keys, wanted = _composite(groups, seen, query_groups=query_groups, query_times=query_times)
    # One query after the other in the order of the keys: their neighbors are in the processor's cache.
    by_key = np.argsort(wanted)
    stops: Ints = np.empty(len(wanted), np.int64)
    stops[by_key] = np.searchsorted(keys, wanted[by_key], side="right")
    is_first = np.append(True, groups[1:] != groups[:-1])
    group_starts = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    found = (stops > 0) & (groups[stops - 1] == query_groups) & (query_groups >= 0)
    counts = np.where(found, stops - group_starts[stops - 1], 0)
    return Windows(rows=rows, starts=stops - np.minimum(counts, length), stops=stops, counts=counts)


def _scattered(
    rows: Ints, *, seen: Ints, bounds: tuple[Ints, Ints], query_times: Ints, length: int, labels: Ints | None
) -> Windows:
    """Find windows row by row: what is visible need not be the start of its group (a late arrival, a late text)."""
    firsts, lasts = bounds
    parts: list[Ints] = [np.zeros(0, np.int64)]
    counts: Ints = np.zeros(len(firsts), np.int64)
    for part in slices(lasts - firsts, limit=SCATTER_LIMIT):
        _, place = ranges(firsts[part], lasts[part])
        owner = np.repeat(np.arange(part.start, part.stop), lasts[part] - firsts[part])
        visible = seen[place] <= query_times[owner]
        place, owner = place[visible], owner[visible]
        if labels is not None and len(place):
            is_last = np.ones(len(place), bool)
            is_last[:-1] = (owner[1:] != owner[:-1]) | (labels[place[1:]] != labels[place[:-1]])
            place, owner = place[is_last], owner[is_last]
        counts[part] = np.bincount(owner - part.start, minlength=part.stop - part.start)
        from_end = np.cumsum(counts[part])[owner - part.start] - np.arange(len(owner))
        parts.append(rows[place[from_end <= length]])
    kept = np.minimum(counts, length)
    stops: Ints = np.cumsum(kept)
    return Windows(rows=np.concatenate(parts), starts=stops - kept, stops=stops, counts=counts)
