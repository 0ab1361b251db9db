"""The behavior schema and its checks.

A behavior is one rated (or clicked) item of one user at one time. Tables of behaviors are Arrow tables with the
columns below; whatever leaves `check_behaviors` is canonical, and what it refuses it refuses whole: no row of a
bad table is taken, no row is dropped in silence.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liber_feast.errors import InvalidBehaviors, printable

USER, ITEM, RATING, EVENT_TIME, BEHAVIOR_ID = "user_id", "item_id", "rating", "event_timestamp", "behavior_id"
CREATED_TIME = "created_timestamp"
TIMESTAMP = pa.timestamp("us", tz="UTC")
REQUIRED = (USER, ITEM, RATING, EVENT_TIME)

EARLIEST = pa.scalar(datetime(1678, 1, 1, tzinfo=UTC), TIMESTAMP)
"""Before it lie what other programs write for no time (the year 1), and what pandas' nanoseconds cannot hold."""
MAX_ID_LENGTH = 512
"""Characters of an id of a user, item or behavior: what a database can index."""
QUOTED_LENGTH = 80
"""Characters of a bad value that a message quotes."""
FUTURE_TOLERANCE = timedelta(days=1)
"""How far past the clock an event time may lie; farther is taken for a wrong unit or a broken clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Behavior:
    """One behavior; ordered within its user by (event_time, behavior_id)."""

    user_id: str | int
    item_id: str | int
    rating: float
    event_time: datetime
    behavior_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RatingScale:
    """The closed interval of valid ratings, and the rating above which an item counts as liked."""

    low: float = 0.5
    high: float = 5.0
    like_above: float = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedBehaviors:
    """A canonical behavior table and what was done to make it so.

    `table` has the columns user_id, item_id (both string or int64), rating (float64), event_timestamp
    (microseconds, UTC) and behavior_id (string), sorted by (event_timestamp, behavior_id), each
    (user_id, behavior_id) once. `repeated` has the rows that were left out for one before them.
    """

    table: pa.Table
    repeated: pa.Table
    was_sorted: bool

    @property
    def duplicate_count(self) -> int:
        """How many rows were left out."""
        return len(self.repeated)


def check_behaviors(
    table: pa.Table, *, scale: RatingScale, now: datetime, source: str = "behaviors"
) -> CheckedBehaviors:
    """Return `table` in canonical form.

    Unsorted rows are sorted, rows of a (user, behavior id) seen before are counted and left out; the id is
    the column `behavior_id` where there is one, else a hash of user, item and time. Naive times are UTC.

    Raises:
        InvalidBehaviors: a missing column, a wrong type, a null, an id that no database can keep, a rating outside
            `scale` or a time later than `now` plus `FUTURE_TOLERANCE`; the message is one line and names `source`,
            the column and the first bad row.
    """
    _refuse_columns(table.column_names, source=source)
    readers = {
        USER: lambda: _ids(table, USER, source=source),
        ITEM: lambda: _ids(table, ITEM, source=source),
        RATING: lambda: _ratings(table, scale=scale, source=source),
        EVENT_TIME: lambda: _times(table, now=now, source=source),
    }
    if BEHAVIOR_ID in table.column_names:
        readers[BEHAVIOR_ID] = lambda: _ids(table, BEHAVIOR_ID, source=source).cast(pa.string())
    columns = {name: _read(reader, name, source=source) for name, reader in readers.items()}
    if BEHAVIOR_ID not in columns:
        columns[BEHAVIOR_ID] = behavior_ids(columns[USER], columns[ITEM], columns[EVENT_TIME])
    return canonical_order(pa.table(columns))


def behavior_ids(users: pa.Array, items: pa.Array, times: pa.Array) -> pa.Array:
    """Return the ids of behaviors whose source has none: 16 hex digits, a hash of user, item and time."""
    micros = times.cast(TIMESTAMP).cast(pa.int64())
    rows = zip(*(_values(column) for column in (users, items, micros)), strict=True)
    return pa.array(
        [hashlib.blake2b(f"{u}\x1f{i}\x1f{t}".encode(), digest_size=8).hexdigest() for u, i, t in rows], pa.string()
    )


def _values(column: pa.Array) -> list[object]:
    values: list[object] = column.to_pylist() if column.null_count else column.to_numpy(zero_copy_only=False).tolist()
    return values


def microseconds(moment: datetime) -> int:
    """Return an aware (or naive UTC) datetime as microseconds since 1970 UTC, exactly."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def moment_at(micros: int) -> datetime:
    """Return microseconds since 1970 UTC as an aware datetime, exactly: what `microseconds` takes."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def canonical_times(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a timestamp column of any unit as microseconds UTC; naive times are UTC, finer units are cut.

    Raises:
        pa.ArrowInvalid: a time of a coarser unit that microseconds cannot hold.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.type.tz is None:
        array = array.cast(pa.timestamp(array.type.unit, tz="UTC"))
    return pc.cast(array, options=pc.CastOptions(TIMESTAMP, allow_time_truncate=True))


def canonical_id_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type ids of `kind` are kept in (string or int64), or None where `kind` is neither text nor integer."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.int64() if pa.types.is_integer(kind) and kind != pa.uint64() else None


def _refuse_columns(names: list[str], *, source: str) -> None:
    for name in REQUIRED:
        if name not in names:
            raise InvalidBehaviors(
                f"{source}: column {name!r} is missing; found {_brief(', '.join(names)) or 'no columns'}."
                f" Behaviors need {', '.join(REQUIRED)}.",
                column=name,
            )
    for name in (*REQUIRED, BEHAVIOR_ID):
        if names.count(name) > 1:
            raise InvalidBehaviors(
                f"{source}: column {name!r} is there {names.count(name)} times. Keep one.", column=name
            )


def _read(reader: Callable[[], pa.Array], name: str, *, source: str) -> pa.Array:
    """Return a column; one that Arrow cannot read is refused: a text that is no UTF-8, broken indices, 2 GiB of ids."""
    try:
        return reader()
    except pa.ArrowException as error:
        raise InvalidBehaviors(
            f"{source}: column {name!r} cannot be read: {_brief(error)}. Write it anew.", column=name
        ) from error


def _brief(found: object) -> str:
    """Return what was found as a message quotes it: in one line, and not at any length."""
    text = printable(str(found))
    return text if len(text) <= QUOTED_LENGTH else f"{text[:QUOTED_LENGTH]}..."


def _ids(table: pa.Table, name: str, *, source: str) -> pa.Array:
    column = _no_nulls(table, name, source=source)
    kind = canonical_id_type(column.type)
    if not len(column):
        return pa.array([], kind or pa.string())
    if kind is None:
        raise InvalidBehaviors(
            f"{source}: column {name!r} has type {_brief(column.type)}; ids are strings or 64-bit integers.",
            column=name,
        )
    ids = column.cast(kind)
    if pa.types.is_string(ids.type):
        longest = f"Ids have 1 to {MAX_ID_LENGTH} characters."
        _refuse(pc.equal(ids, ""), ids, name, what="an empty id", fix=longest, source=source)
        too_long = pc.greater(pc.utf8_length(ids), MAX_ID_LENGTH)
        _refuse(too_long, ids, name, what="an id that is too long", fix=longest, source=source)
        with_nul = pc.match_substring(ids, "\0")
        _refuse(with_nul, ids, name, what="a NUL character", fix="No database keeps one in a text.", source=source)
    return ids


def _ratings(table: pa.Table, *, scale: RatingScale, source: str) -> pa.Array:
    column = _no_nulls(table, RATING, source=source)
    if not len(column):
        return pa.array([], pa.float64())
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise InvalidBehaviors(
            f"{source}: column {RATING!r} has type {_brief(column.type)}; ratings are numbers.", column=RATING
        )
    ratings = column.cast(pa.float64(), safe=False)
    outside = pc.invert(pc.and_(pc.greater_equal(ratings, scale.low), pc.less_equal(ratings, scale.high)))
    _refuse(
        outside,
        ratings,
        RATING,
        what=f"a rating outside the scale {scale.low:g} to {scale.high:g}",
        fix="Correct the source, or set `behavior.scale` in the engine block.",
        source=source,
    )
    return ratings


def _times(table: pa.Table, *, now: datetime, source: str) -> pa.Array:
    column = _no_nulls(table, EVENT_TIME, source=source)
    if not len(column):
        return pa.array([], TIMESTAMP)
    if not pa.types.is_timestamp(column.type):
        raise InvalidBehaviors(
            f"{source}: column {EVENT_TIME!r} has type {_brief(column.type)}; it must be a timestamp"
            " (parse texts and unix seconds before).",
            column=EVENT_TIME,
        )
    try:
        times = canonical_times(column)
    except pa.ArrowInvalid as error:
        raise InvalidBehaviors(
            f"{source}: column {EVENT_TIME!r} has times outside the range of microseconds: {_brief(error)}.",
            column=EVENT_TIME,
        ) from error
    fix = "Is its unit right (seconds, milliseconds)?"
    latest = pa.scalar(now.astimezone(UTC) + FUTURE_TOLERANCE, TIMESTAMP)
    _refuse(pc.greater(times, latest), times, EVENT_TIME, what="a time in the future", fix=fix, source=source)
    _refuse(pc.less(times, EARLIEST), times, EVENT_TIME, what="a time before 1678", fix=fix, source=source)
    return times


def _no_nulls(table: pa.Table, name: str, *, source: str) -> pa.Array:
    table.column(name).validate(full=True)
    column = table.column(name).combine_chunks()
    if pa.types.is_dictionary(column.type):  # nulls among a dictionary's values are not in its null_count
        column = column.dictionary_decode()
    if column.null_count:
        first = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InvalidBehaviors(
            f"{source}: column {name!r} is null in {column.null_count} rows, first in row {first}."
            " Behaviors need every value.",
            column=name,
            row_count=column.null_count,
        )
    return column


def _refuse(bad: pa.Array, values: pa.Array, name: str, *, what: str, fix: str, source: str) -> None:
    rows = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    if len(rows):
        first = int(rows[0])
        value = str(values.slice(first, 1).to_numpy(zero_copy_only=False)[0])  # a datetime cannot hold every time
        value = value if len(value) <= QUOTED_LENGTH else f"{value[:QUOTED_LENGTH]}..."
        raise InvalidBehaviors(
            f"{source}: column {name!r} has {what} in {len(rows)} rows, first {value!r} in row {first}. {fix}",
            column=name,
            row_count=len(rows),
        )


def canonical_order(table: pa.Table) -> CheckedBehaviors:
    """Return rows that are checked, in canonical types, sorted and each (user, behavior id) once: the first of all."""
    order = _order(table)
    was_sorted = bool((order == np.arange(len(order))).all())
    ordered = table if was_sorted else table.take(pa.array(order))
    is_repeated = _repeated(ordered)
    if not is_repeated.any():
        return CheckedBehaviors(table=ordered, repeated=ordered.slice(0, 0), was_sorted=was_sorted)
    once, repeated = ordered.filter(pa.array(~is_repeated)), ordered.filter(pa.array(is_repeated))
    return CheckedBehaviors(table=once, repeated=repeated, was_sorted=was_sorted)


def _order(table: pa.Table) -> NDArray[np.int64]:
    """Return the order by (time, id); ids are compared in ties alone, because texts sort slowly."""
    times = table[EVENT_TIME].cast(pa.int64()).to_numpy()
    order = np.argsort(times, kind="stable")
    repeats = np.diff(times[order]) == 0
    is_tied = np.append(repeats, False) | np.append(False, repeats)
    if len(order) and is_tied.any():
        tied = order[is_tied]
        ids = table[BEHAVIOR_ID].take(pa.array(tied)).to_pandas().to_numpy()
        order[is_tied] = tied[np.lexsort((ids, times[tied]))]
    return order


def _repeated(table: pa.Table) -> NDArray[np.bool_]:
    """Return which rows have the (user, behavior id) of one before."""
    ids = table[BEHAVIOR_ID].combine_chunks().dictionary_encode()
    repeated = np.zeros(len(table), np.bool_)
    if len(ids.dictionary) < len(table):
        users = table[USER].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        pairs = users * len(ids.dictionary) + ids.indices.to_numpy()
        repeated[:] = True
        repeated[np.unique(pairs, return_index=True)[1]] = False
    return repeated
