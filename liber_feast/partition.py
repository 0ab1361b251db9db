"""Cut a user's behavior stream into sealed partitions (LIBER, algorithm 1 and equation 1).

A behavior joins its user's short-term cache; when the condition holds, the whole cache becomes the next partition,
which never changes again. Conditions look at the cache and the next behavior alone, so the cache is the whole state:
any split of a stream into feeds, and the rule over a whole table, give the same partitions.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liber_feast.behavior import Behavior
from liber_feast.condition import MICROSECOND, Condition, CountCondition, DriftCondition, TimeCondition, condition_from
from liber_feast.errors import ConfigError, EncoderError, InvalidBehaviors, OutOfOrderBehavior

__all__ = [
    "NEVER_SEALED",
    "Condition",
    "CountCondition",
    "DriftCondition",
    "ItemVectors",
    "Partition",
    "Partitioner",
    "TimeCondition",
    "condition_from",
    "content_hash",
    "content_hashes",
    "order",
    "partition_hash",
    "partition_table",
    "quantize",
    "seal",
    "seal_time",
    "seal_times",
]

FIXED_POINT = 4096
"""Units per 1.0 in quantized item vectors."""

NEVER_SEALED = np.iinfo(np.int64).min
"""In `seal_times`, the previous seal time of a user without partitions."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BLOCK = 256  # users that step together in the drift rule: their sums fit the processor's cache

Codes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemVectors:
    """Item vectors in fixed point, for the drift rule: `table` is int16 (items, width), `rows` an id's row in it."""

    rows: Mapping[str | int, int]
    table: NDArray[np.int16]

    @classmethod
    def of(cls, item_ids: Sequence[str | int], *, vectors: NDArray[np.floating[Any]]) -> "ItemVectors":
        """Quantize `vectors` (items, width), row i being that of `item_ids[i]`."""
        return cls(rows=dict(zip(item_ids, range(len(vectors)), strict=True)), table=quantize(vectors))

    def codes(self, item_ids: Iterable[str | int]) -> Codes:
        """Return each item's row, -1 for an item without vector."""
        return np.array([self.rows.get(item_id, -1) for item_id in item_ids], np.int64)

    def vector(self, item_id: str | int) -> Codes:
        """Return an item's fixed-point vector as int64, zeros for an item without vector."""
        row = self.rows.get(item_id)
        return np.zeros(self.table.shape[1], np.int64) if row is None else self.table[row].astype(np.int64)


def quantize(vectors: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
    """Return unit vectors in fixed point, round(v * 4096), row by row; zero rows stay zero.

    Raises:
        EncoderError: a value that is not finite.
    """
    rows = np.ascontiguousarray(vectors, np.float64)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise EncoderError(f"item vectors: row {broken[0]} is not finite ({len(broken)} such rows). Encode them again.")
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return np.rint(rows / np.where(norms > 0, norms, 1.0) * FIXED_POINT).astype(np.int16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """The user's partition number `index`, counted from 0, its behaviors ordered by (event_time, behavior_id)."""

    index: int
    behaviors: tuple[Behavior, ...]


class Partitioner:
    """Algorithm 1 for one user's stream; `cache` is what is not yet in a partition, and changes by the methods alone.

    Raises:
        ConfigError: the drift condition without item vectors.
        OutOfOrderBehavior: a cache that is not ordered by (event_time, behavior_id).
    """

    def __init__(
        self, condition: Condition, *, vectors: ItemVectors | None = None, cache: Sequence[Behavior] = ()
    ) -> None:
        _check_order(cache)
        self.condition = condition
        self.cache = list(cache)
        self._vectors = _check_vectors(vectors) if isinstance(condition, DriftCondition) else None
        width = 0 if self._vectors is None else self._vectors.table.shape[1]
        self._total: Codes = np.zeros(width, np.int64)  # of the cached items' vectors
        for behavior in self.cache:
            self._add(behavior)

    def append(self, behavior: Behavior) -> list[tuple[Behavior, ...]]:
        """Put `behavior` into the cache and return what that sealed, oldest first: none, one or two partitions.

        Where a late behavior is placed is the memory's business, not the rule's.

        Raises:
            OutOfOrderBehavior: `behavior` belongs before one in the cache; nothing is changed.
        """
        _check_order([*self.cache[-1:], behavior])
        sealed = [self._seal()] if self.cache and self._seals_before(behavior) else []
        self.cache.append(behavior)
        self._add(behavior)
        return [*sealed, self._seal()] if self._seals_after() else sealed

    def seal_idle(self, now: datetime) -> list[tuple[Behavior, ...]]:
        """Seal the cache if it has been idle at `now`; called or not before the next behavior, partitions are equal."""
        return [self._seal()] if self.cache and self._is_idle(now) else []

    def _seals_before(self, behavior: Behavior) -> bool:
        if isinstance(self.condition, TimeCondition):
            return self._is_idle(behavior.event_time)
        if self._vectors is None or not isinstance(self.condition, DriftCondition):
            return False
        if len(self.cache) < self.condition.minimum:
            return False
        vector, total = self._vectors.vector(behavior.item_id), self._total
        drift = _drift(total @ vector, squared=total @ total, other_squared=vector @ vector)
        return bool(drift > self.condition.threshold)

    def _seals_after(self) -> bool:
        if isinstance(self.condition, CountCondition):
            return len(self.cache) >= self.condition.size
        if isinstance(self.condition, DriftCondition):
            return len(self.cache) >= self.condition.maximum
        span = self.condition.span
        return span is not None and self.cache[-1].event_time - self.cache[0].event_time >= span

    def _is_idle(self, now: datetime) -> bool:
        idle = self.condition.idle if isinstance(self.condition, TimeCondition) else None
        return idle is not None and now - self.cache[-1].event_time >= idle

    def _add(self, behavior: Behavior) -> None:
        if self._vectors is not None:
            self._total += self._vectors.vector(behavior.item_id)

    def _seal(self) -> tuple[Behavior, ...]:
        sealed, self.cache = tuple(self.cache), []
        self._total = np.zeros_like(self._total)
        return sealed


def seal(
    stream: Sequence[Behavior],
    *,
    condition: Condition,
    start: int = 0,
    cache: Sequence[Behavior] = (),
    vectors: ItemVectors | None = None,
) -> tuple[list[Partition], tuple[Behavior, ...]]:
    """Append one user's `stream` to `cache`; return the partitions, numbered from `start`, and the cache after them.

    Raises:
        OutOfOrderBehavior: `cache` and `stream` are not ordered by (event_time, behavior_id).
        ConfigError: the drift condition without item vectors.
    """
    _check_order([*cache[-1:], *stream])
    partitioner = Partitioner(condition, vectors=vectors, cache=cache)
    sealed = [behaviors for behavior in stream for behaviors in partitioner.append(behavior)]
    partitions = [Partition(index=index, behaviors=behaviors) for index, behaviors in enumerate(sealed, start)]
    return partitions, tuple(partitioner.cache)


def order(behavior: Behavior) -> tuple[datetime, str]:
    """Return what behaviors of a user are ordered by."""
    return behavior.event_time, behavior.behavior_id


def partition_table(
    user_codes: Codes,
    times_us: Codes,
    *,
    condition: Condition,
    item_codes: Codes | None = None,
    item_vectors: NDArray[np.int16] | None = None,
) -> Codes:
    """Return per row the ordinal of its partition within its user, or -1 where it stays in the cache.

    Rows are sorted by (user, time, behavior id), times are microseconds. A user's rows are the whole stream, or the
    cache that an earlier call with this condition left and what came after. The drift condition also needs
    `item_vectors`, which is `ItemVectors.table`, and in `item_codes` each item's row there (-1: none).

    Raises:
        InvalidBehaviors: rows that are not sorted by user and time.
        ConfigError: the drift condition without item vectors, or with vectors that are not quantized.
    """
    is_first = _first_rows(user_codes)
    _check_rows(user_codes, times_us=times_us, is_first=is_first)
    starts = np.flatnonzero(is_first)
    counts = np.diff(starts, append=len(user_codes))
    if isinstance(condition, CountCondition):
        is_last = (np.arange(len(user_codes)) - np.repeat(starts, counts)) % condition.size == condition.size - 1
    elif isinstance(condition, TimeCondition):
        is_last = _time_ends(times_us, is_first=is_first, condition=condition)
    else:
        codes, vectors = _used_vectors(item_codes, item_vectors)
        is_last = _drift_ends(starts, counts=counts, condition=condition, item_codes=codes, item_vectors=vectors)
    sealed_before = np.cumsum(is_last) - is_last
    ordinals = sealed_before - np.repeat(sealed_before[starts], counts)
    sealed_counts = np.add.reduceat(is_last, starts, dtype=np.int64) if len(starts) else counts
    return np.where(ordinals < np.repeat(sealed_counts, counts), ordinals, -1)


def seal_time(latest_us: int, *, previous_us: int | None) -> int:
    """Return a partition's seal time in microseconds: just after its latest behavior and after the partition before."""
    return (latest_us if previous_us is None else max(latest_us, previous_us)) + 1


def seal_times(latest_us: Codes, *, user_codes: Codes, previous_us: Codes | None = None) -> Codes:
    """Return `seal_time` of many partitions, sorted by user and index.

    At each user's first row `previous_us` says when the user's partition before it was sealed, or `NEVER_SEALED`.
    """
    is_first = _first_rows(user_codes)
    group = np.cumsum(is_first) - 1
    position: Codes = np.arange(len(latest_us)) - np.flatnonzero(is_first)[group]
    # With s(i) = max(latest(i), s(i - 1)) + 1, s(i) - i - 1 is the running maximum of latest(i) - i within the user.
    floor = latest_us - position
    if previous_us is not None:
        floor = np.where(is_first, np.maximum(floor, previous_us), floor)
    values, ranks = np.unique(floor, return_inverse=True)  # ranks, so that a user's number times their count fits
    highest = values[np.maximum.accumulate(group * len(values) + ranks) - group * len(values)]
    seals: Codes = highest + position + 1
    return seals


def partition_hash(behaviors: Iterable[Behavior]) -> str:
    """Return the content hash of a partition's ordered behaviors: a part of the key of LLM results."""
    return content_hash((b.behavior_id, b.item_id, b.rating, (b.event_time - EPOCH) // MICROSECOND) for b in behaviors)


def content_hash(rows: Iterable[tuple[str, str | int, float, int]]) -> str:
    """Return 32 hex digits for ordered rows of behavior id, item id, rating and time in microseconds."""
    content = hashlib.blake2b(digest_size=16)
    for behavior_id, item_id, rating, time_us in rows:
        for field in (behavior_id, str(item_id), float(rating).hex(), str(time_us)):
            encoded = field.encode()
            content.update(len(encoded).to_bytes(8, "big") + encoded)  # the length, so that no id can imitate another
    return content.hexdigest()


def content_hashes(
    behavior_ids: pa.Array, item_ids: pa.Array, *, ratings: NDArray[np.float64], times_us: Codes, starts: Codes
) -> list[str]:
    """Return `content_hash` of many partitions: rows in order, `starts` being the first row of each."""
    bits, places = np.unique(ratings.view(np.int64), return_inverse=True)  # as bits, in which -0.0 is not 0.0
    spelled = pa.array([rating.hex() for rating in bits.view(np.float64).tolist()], pa.string())
    times = pa.array(times_us).cast(pa.string())
    parts = []
    for column in (behavior_ids, item_ids, spelled.take(pa.array(places)), times):
        field = column.cast(pa.large_binary())
        lengths = pc.binary_length(field).to_numpy(zero_copy_only=False).astype(">u8")
        sizes = pa.Array.from_buffers(pa.binary(8), len(field), [None, pa.py_buffer(lengths)])
        parts += [sizes.cast(pa.large_binary()), field]
    content = pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))
    _, offsets, data = content.buffers()
    if data is None:
        return []
    edges = np.frombuffer(offsets, np.int64)[np.append(starts, len(content))].tolist()
    whole = memoryview(data)
    return [hashlib.blake2b(whole[left:right], digest_size=16).hexdigest() for left, right in pairwise(edges)]


def _first_rows(user_codes: Codes) -> NDArray[np.bool_]:
    is_first = np.ones(len(user_codes), bool)
    is_first[1:] = user_codes[1:] != user_codes[:-1]
    return is_first


def _check_rows(user_codes: Codes, *, times_us: Codes, is_first: NDArray[np.bool_]) -> None:
    is_ahead = (user_codes[1:] < user_codes[:-1]) | (~is_first[1:] & (times_us[1:] < times_us[:-1]))
    if is_ahead.any():
        row = int(is_ahead.argmax()) + 1
        raise InvalidBehaviors(
            f"behaviors: row {row} belongs before row {row - 1}. Sort the rows by user, time and behavior id.",
            row_count=int(is_ahead.sum()),
        )


def _drift(dots: Codes, *, squared: Codes, other_squared: Codes) -> NDArray[np.float64]:
    # The root of the product, not the product of the roots: parallel vectors then drift by exactly 0.
    norms: NDArray[np.float64] = np.sqrt(squared.astype(np.float64) * other_squared.astype(np.float64))
    drift: NDArray[np.float64] = np.where(norms > 0, 1.0 - dots / np.where(norms > 0, norms, 1.0), 0.0)
    return drift


def _time_ends(times_us: Codes, *, is_first: NDArray[np.bool_], condition: TimeCondition) -> NDArray[np.bool_]:
    is_last = np.zeros(len(times_us), bool)
    opens = is_first.copy()
    if condition.idle is not None:
        after_idle = ~is_first[1:] & (np.diff(times_us) >= condition.idle // MICROSECOND)
        is_last[:-1] = after_idle
        opens[1:] |= after_idle
    if condition.span is not None:
        span = condition.span // MICROSECOND
        lefts = np.flatnonzero(opens)
        stops = np.append(lefts[1:], len(times_us))[: len(lefts)]
        wide = times_us[stops - 1] - times_us[lefts] >= span
        times = times_us.tolist()
        segments = zip(lefts[wide].tolist(), stops[wide].tolist(), strict=True)
        is_last[[end for left, stop in segments for end in _span_ends(times, left=left, stop=stop, span=span)]] = True
    return is_last


def _span_ends(times: list[int], *, left: int, stop: int, span: int) -> Iterator[int]:
    while left < stop:
        end = bisect_left(times, times[left] + span, left + 1, stop)
        if end < stop:
            yield end
        left = end + 1


def _drift_ends(
    starts: Codes, *, counts: Codes, condition: DriftCondition, item_codes: Codes, item_vectors: NDArray[np.int16]
) -> NDArray[np.bool_]:
    is_last = np.zeros(len(item_codes), bool)
    squared_norms = np.einsum("iw,iw->i", item_vectors, item_vectors, dtype=np.int64)
    longest_first = np.argsort(-counts, kind="stable")
    for left in range(0, len(starts), BLOCK):
        users = longest_first[left : left + BLOCK]
        total = np.zeros((len(users), item_vectors.shape[1]), np.int64)
        total_squared, length = np.zeros((2, len(users)), np.int64)
        for step in range(counts[users[0]]):
            active = int(np.searchsorted(-counts[users], -step))  # the users with more than `step` behaviors
            rows = starts[users[:active]] + step
            codes = item_codes[rows]
            vectors = item_vectors[codes].astype(np.int64)
            sums, squared, held, added = total[:active], total_squared[:active], length[:active], squared_norms[codes]
            dots = np.einsum("uw,uw->u", sums, vectors)
            drift = _drift(dots, squared=squared, other_squared=added)
            drifted = (held >= condition.minimum) & (drift > condition.threshold)
            is_last[rows[drifted] - 1] = True
            sums[drifted] = squared[drifted] = held[drifted] = dots[drifted] = 0
            sums += vectors
            squared += 2 * dots + added
            held += 1
            full = held >= condition.maximum
            is_last[rows[full]] = True
            sums[full] = squared[full] = held[full] = 0
    return is_last


def _check_order(stream: Sequence[Behavior]) -> None:
    for earlier, later in pairwise(stream):
        if order(later) < order(earlier):
            raise OutOfOrderBehavior(earlier=earlier, later=later)


def _check_vectors(vectors: ItemVectors | None) -> ItemVectors:
    if vectors is None:
        raise ConfigError("partition: condition drift needs item vectors, and there are none.")
    return vectors


def _used_vectors(item_codes: Codes | None, item_vectors: NDArray[np.int16] | None) -> tuple[Codes, NDArray[np.int16]]:
    if item_codes is None or item_vectors is None:
        raise ConfigError("partition: condition drift needs item vectors, and there are none.")
    if item_vectors.dtype != np.int16:
        raise ConfigError(f"partition: item vectors are {item_vectors.dtype}, not int16. Quantize them.")
    used, codes = np.unique(np.maximum(item_codes, -1), return_inverse=True)  # a push touches few of many items
    vectors = np.zeros((len(used), item_vectors.shape[1]), np.int16)
    vectors[used >= 0] = item_vectors[used[used >= 0]]
    return codes, vectors
