"""Append behaviors to the memory and seal the partitions they fill, in the caller's transaction.

The short-term cache alone is the state of Algorithm 1: cached and new rows are laid in one order and cut by the
vectorized rule, so that any split of a stream gives the partitions of one append.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from liber_feast.behavior import BEHAVIOR_ID, EVENT_TIME, ITEM, RATING, USER
from liber_feast.errors import InvalidBehaviors
from liber_feast.memory.bulk import execute_many, join_pairs
from liber_feast.memory.clock import now_us
from liber_feast.memory.schema import behaviors, partitions, users
from liber_feast.memory.settings import keep_setting, setting
from liber_feast.partition import (
    NEVER_SEALED,
    Condition,
    ItemVectors,
    TimeCondition,
    content_hash,
    partition_table,
    seal_times,
)

VALUES_PER_QUERY = 400

Rows: TypeAlias = npt.NDArray[np.void]
"""Behaviors as a structured array of `_BEHAVIOR`."""

States: TypeAlias = Mapping[int, sa.Row[Any]]
"""What the memory had of users before an append, by user key."""

VectorsOf: TypeAlias = Callable[[Sequence[str]], ItemVectors]
"""For the drift rule: the vectors of items by id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What one append changed."""

    behavior_count: int
    duplicate_count: int
    late_count: int
    sealed_count: int
    user_keys: tuple[int, ...]
    """Users that sent behaviors, new or not: a push sent again after a crash is to finish what the first one left."""


_BEHAVIOR = np.dtype(
    [
        ("user_key", np.int64),
        ("order_time", np.int64),
        ("event_time", np.int64),
        ("rating", np.float64),
        ("behavior_id", object),
        ("item_id", object),
        ("is_new", np.bool_),
    ]
)


def _check_id_types(connection: sa.Connection, table: pa.Table) -> None:
    for column in (USER, ITEM):
        found, name = str(table.schema.field(column).type), f"{column}_type"
        kept = setting(connection, name)
        if kept is None:
            keep_setting(connection, name, found)
        elif kept != found:
            raise InvalidBehaviors(
                f"behaviors: column {column!r} has type {found}, but the memory holds {kept} ids. Use one type of ids.",
                column=column,
            )


def append(
    connection: sa.Connection, table: pa.Table, *, condition: Condition, item_vectors: VectorsOf | None = None
) -> Appended:
    """Append a canonical behavior table; see `Memory.append`."""
    if not len(table):  # its columns may be of any type
        return Appended(behavior_count=0, duplicate_count=0, late_count=0, sealed_count=0, user_keys=())
    _check_id_types(connection, table)
    rows, states = _sent_rows(connection, table)
    user_keys = tuple(np.unique(rows["user_key"]).tolist())
    seen = _seen(connection, rows, states)
    duplicates, rows = rows[seen], rows[~seen]
    is_late = _is_late(rows, states)
    _add(connection, "duplicate_count", duplicates)
    _add(connection, "late_count", rows[is_late])
    keys = np.unique(rows["user_key"])
    cached = _cached_rows(connection, keys.tolist())
    _add(connection, "behavior_count", rows)
    _number(connection, keys.tolist())
    _place_late(rows, is_late, cached=cached, states=states)
    rows = _ordered(np.concatenate([cached, rows]))
    vectors = None if item_vectors is None else item_vectors(sorted(set(rows["item_id"])))
    ordinals = partition_table(
        rows["user_key"],
        rows["order_time"],
        condition=condition,
        item_codes=None if vectors is None else vectors.codes(rows["item_id"]),
        item_vectors=None if vectors is None else vectors.table,
    )
    sealed_count = _write(connection, rows, ordinals, condition=condition, states=states)
    return Appended(
        behavior_count=int(rows["is_new"].sum()),
        duplicate_count=len(duplicates),
        late_count=int(is_late.sum()),
        sealed_count=sealed_count,
        user_keys=user_keys,
    )


def seal_idle(connection: sa.Connection, now_us: int, *, condition: Condition) -> int:
    """Seal the caches that have been idle at `now_us`, microseconds; return how many."""
    if not isinstance(condition, TimeCondition) or condition.idle is None:
        return 0
    last = sa.func.max(behaviors.c.order_time)
    idle = (
        sa.select(behaviors.c.user_key)
        .where(behaviors.c.partition_index.is_(None))
        .group_by(behaviors.c.user_key)
        .having(last <= now_us - condition.idle // timedelta(microseconds=1))
    )
    keys = connection.scalars(idle).all()
    if not keys:
        return 0
    states = {row.user_key: row for row in _select_users(connection, users.c.user_key, keys)}
    rows = _ordered(_cached_rows(connection, keys))
    return _write_partitions(connection, rows, np.zeros(len(rows), np.int64), condition=condition, states=states)


def items_in_play(connection: sa.Connection, table: pa.Table) -> list[str]:
    """Return the ids of the items in `table` and in its users' caches: those whose vectors the drift rule needs."""
    user_ids = [str(user) for user in pc.unique(table[USER]).to_pylist()]
    cached = _cached_rows(connection, [row.user_key for row in _select_users(connection, users.c.user_id, user_ids)])
    return sorted({*cached["item_id"], *(str(item) for item in pc.unique(table[ITEM]).to_pylist())})


def encoded_before(item_vectors: VectorsOf, items: Sequence[str]) -> VectorsOf:
    """Return what gives the vectors of `items` that were made now, and asks again only for others."""
    vectors, known = item_vectors(items), set(items)
    return lambda wanted: vectors if known.issuperset(wanted) else item_vectors(wanted)


def _sent_rows(connection: sa.Connection, table: pa.Table) -> tuple[Rows, States]:
    """Return the rows of a table that is not empty, and their users' states."""
    encoded = table[USER].combine_chunks().dictionary_encode()
    user_ids = [str(user) for user in encoded.dictionary.to_pylist()]
    states = _states(connection, user_ids)
    keys = {state.user_id: key for key, state in states.items()}
    rows = np.empty(len(table), _BEHAVIOR)
    rows["user_key"] = np.array([keys[user] for user in user_ids], np.int64)[encoded.indices.to_numpy()]
    rows["event_time"] = rows["order_time"] = pc.cast(table[EVENT_TIME], pa.int64()).to_numpy()
    rows["rating"] = table[RATING].to_numpy()
    rows["behavior_id"] = table[BEHAVIOR_ID].to_pandas().to_numpy(object)
    rows["item_id"] = pc.cast(table[ITEM], pa.string()).to_pandas().to_numpy(object)
    rows["is_new"] = True
    return rows, states


def _states(connection: sa.Connection, user_ids: Sequence[str]) -> States:
    """Return the users' states by key; users that the memory lacks are added."""
    found = _select_users(connection, users.c.user_id, user_ids)
    known = {row.user_id for row in found}
    unknown = [user for user in user_ids if user not in known]
    if unknown:
        connection.execute(users.insert(), [{"user_id": user} for user in unknown])
        found += _select_users(connection, users.c.user_id, unknown)
    return {row.user_key: row for row in found}


def _select_users(connection: sa.Connection, column: sa.Column[Any], values: Sequence[Any]) -> list[Any]:
    names = ("user_key", "user_id", "partition_count", "sealed_time", "sealed_behavior_id", "seal_time")
    has_behaviors = sa.exists().where(behaviors.c.user_key == users.c.user_key)
    query = sa.select(*(users.c[name] for name in names), has_behaviors.label("has_behaviors"))
    pieces = (values[start : start + VALUES_PER_QUERY] for start in range(0, len(values), VALUES_PER_QUERY))
    return [row for some in pieces for row in connection.execute(query.where(column.in_(some)))]


def _seen(connection: sa.Connection, rows: Rows, states: States) -> npt.NDArray[np.bool_]:
    """Return which rows' (user, behavior id) the memory has."""
    pairs = list(zip(rows["user_key"].tolist(), rows["behavior_id"].tolist(), strict=True))
    candidates = [pair for pair in pairs if states[pair[0]].has_behaviors]
    if not candidates:
        return np.zeros(len(rows), np.bool_)
    on = (behaviors.c.user_key, behaviors.c.behavior_id)
    query = sa.select(*on).select_from(join_pairs(behaviors, candidates, on=on))
    found = {(user, behavior_id) for user, behavior_id in connection.execute(query)}
    return np.fromiter((pair in found for pair in pairs), np.bool_, len(rows))


def _is_late(rows: Rows, states: States) -> npt.NDArray[np.bool_]:
    """Return which rows' places in time, (event time, behavior id), were sealed before."""
    sealed = {key: (row.sealed_time, row.sealed_behavior_id) for key, row in states.items() if row.partition_count}
    if not sealed:
        return np.zeros(len(rows), np.bool_)
    nowhere = (NEVER_SEALED, "")
    places = zip(rows["user_key"].tolist(), rows["event_time"].tolist(), rows["behavior_id"].tolist(), strict=True)
    late = ((time, behavior_id) < sealed.get(user, nowhere) for user, time, behavior_id in places)
    return np.fromiter(late, np.bool_, len(rows))


def _place_late(rows: Rows, is_late: npt.NDArray[np.bool_], *, cached: Rows, states: States) -> None:
    """Give late rows the order time of the end of their user's cache (of the last seal, where it is empty)."""
    late = np.flatnonzero(is_late)
    ends = {user: states[user].sealed_time for user in np.unique(rows["user_key"][late]).tolist()}
    for user, time in zip(cached["user_key"].tolist(), cached["order_time"].tolist(), strict=True):
        if user in ends:
            ends[user] = max(ends[user], time)
    rows["order_time"][late] = [ends[user] for user in rows["user_key"][late].tolist()]


def _cached_rows(connection: sa.Connection, keys: Sequence[int]) -> Rows:
    """Return the users' short-term caches, in no order."""
    parts = [np.empty(0, _BEHAVIOR)]
    columns = [behaviors.c[name] for name in _BEHAVIOR.names or () if name != "is_new"]
    for start in range(0, len(keys), VALUES_PER_QUERY):
        query = sa.select(*columns).where(
            behaviors.c.partition_index.is_(None), behaviors.c.user_key.in_(keys[start : start + VALUES_PER_QUERY])
        )
        found = connection.execute(query).all()
        parts.append(np.array([(*row, False) for row in found], _BEHAVIOR))
    return np.concatenate(parts)


def _ordered(rows: Rows) -> Rows:
    """Return the rows by user, place in the cache and id; ids are compared in ties alone, because texts sort slowly."""
    if not len(rows):
        return rows
    # A late behavior shares its order time with the last cached one and comes after it, whatever its id.
    is_late = rows["event_time"] < rows["order_time"]
    order = np.lexsort((is_late, rows["order_time"], rows["user_key"]))
    keys = (rows["user_key"][order], rows["order_time"][order], is_late[order])
    is_new = np.r_[True, np.logical_or.reduce([key[1:] != key[:-1] for key in keys])]
    is_tied = ~is_new | ~np.r_[is_new[1:], True]
    tied = order[is_tied]
    order[is_tied] = tied[np.lexsort((rows["behavior_id"][tied], np.cumsum(is_new)[is_tied]))]
    return rows[order]


def _write(
    connection: sa.Connection, rows: Rows, ordinals: npt.NDArray[np.int64], *, condition: Condition, states: States
) -> int:
    fresh = rows["is_new"] & (ordinals < 0)
    if fresh.any():
        _insert_behaviors(connection, rows[fresh], [None] * int(fresh.sum()))
    sealed = ordinals >= 0
    if not sealed.any():
        return 0
    return _write_partitions(connection, rows[sealed], ordinals[sealed], condition=condition, states=states)


def _write_partitions(
    connection: sa.Connection, rows: Rows, ordinals: npt.NDArray[np.int64], *, condition: Condition, states: States
) -> int:
    """Seal `rows`, which lie in partition order; return the number of partitions."""
    indexes = ordinals + np.array([states[user].partition_count for user in rows["user_key"].tolist()], np.int64)
    fresh = rows["is_new"]
    if fresh.any():
        _insert_behaviors(connection, rows[fresh], indexes[fresh].tolist())
    if not fresh.all():
        _move_to_partitions(connection, rows[~fresh], indexes[~fresh])
    starts = np.flatnonzero(np.r_[True, (np.diff(rows["user_key"]) != 0) | (np.diff(ordinals) != 0)])
    ends = np.r_[starts[1:], len(rows)]
    keys = rows["user_key"][starts]
    latest = np.maximum.reduceat(rows["event_time"], starts)
    previous = [NEVER_SEALED if states[user].seal_time is None else states[user].seal_time for user in keys.tolist()]
    sealed_at = seal_times(latest, user_codes=keys, previous_us=np.array(previous, np.int64))
    content = rows[["behavior_id", "item_id", "rating", "event_time"]].tolist()
    spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
    columns = {
        "user_key": keys.tolist(),
        "partition_index": indexes[starts].tolist(),
        "partition_hash": [content_hash(content[start:end]) for start, end in spans],
        "behavior_count": (ends - starts).tolist(),
        "first_time": np.minimum.reduceat(rows["event_time"], starts).tolist(),
        "last_time": latest.tolist(),
        "seal_time": sealed_at.tolist(),
        "condition": [condition.describe()] * len(starts),
        "attempts": [0] * len(starts),
    }
    execute_many(connection, partitions.insert(), columns)
    _move_boundaries(
        connection, rows, indexes, states=states, seals=dict(zip(keys.tolist(), sealed_at.tolist(), strict=True))
    )
    return len(starts)


def _insert_behaviors(connection: sa.Connection, rows: Rows, indexes: Sequence[int | None]) -> None:
    names = ("user_key", "behavior_id", "item_id", "rating", "event_time", "order_time")
    columns = {name: rows[name].tolist() for name in names}
    execute_many(connection, behaviors.insert(), {**columns, "partition_index": indexes})


def _move_to_partitions(connection: sa.Connection, rows: Rows, indexes: npt.NDArray[np.int64]) -> None:
    move = (
        behaviors.update()
        .where(behaviors.c.user_key == sa.bindparam("of_user"), behaviors.c.behavior_id == sa.bindparam("of_behavior"))
        .values(partition_index=sa.bindparam("to_partition"))
    )
    columns = {"of_user": rows["user_key"], "of_behavior": rows["behavior_id"], "to_partition": indexes}
    execute_many(connection, move, {name: values.tolist() for name, values in columns.items()})


def _number(connection: sa.Connection, keys: Sequence[int]) -> None:
    """Give users that changed the next number of their sequence."""
    now = now_us(connection)
    number = sa.case((users.c.sequence_number < now, now), else_=users.c.sequence_number + 1)
    for start in range(0, len(keys), VALUES_PER_QUERY):
        some = keys[start : start + VALUES_PER_QUERY]
        connection.execute(users.update().where(users.c.user_key.in_(some)).values(sequence_number=number))


def _move_boundaries(
    connection: sa.Connection,
    rows: Rows,
    indexes: npt.NDArray[np.int64],
    *,
    states: States,
    seals: Mapping[int, int],
) -> None:
    """Move each user's place in time, count and seal time behind the rows just sealed."""
    starts = np.flatnonzero(np.r_[True, np.diff(rows["user_key"]) != 0])
    latest = np.repeat(np.maximum.reduceat(rows["event_time"], starts), np.diff(starts, append=len(rows)))
    newest = rows[rows["event_time"] == latest]
    newest = newest[np.lexsort((newest["behavior_id"], newest["user_key"]))]
    last = newest[np.r_[np.diff(newest["user_key"]) != 0, True]]
    counts = dict(zip(rows["user_key"].tolist(), (indexes + 1).tolist(), strict=True))  # the last row of a user wins
    update = (
        users.update()
        .where(users.c.user_key == sa.bindparam("of_user"))
        .values(
            {name: sa.bindparam(name) for name in ("partition_count", "sealed_time", "sealed_behavior_id", "seal_time")}
        )
    )
    changes = []
    for row in last:
        user, state = int(row["user_key"]), states[int(row["user_key"])]
        place = (int(row["event_time"]), str(row["behavior_id"]))
        if state.sealed_time is not None:
            place = max(place, (state.sealed_time, state.sealed_behavior_id or ""))
        changes.append(
            {
                "of_user": user,
                "partition_count": counts[user],
                "sealed_time": place[0],
                "sealed_behavior_id": place[1],
                "seal_time": seals[user],
            }
        )
    connection.execute(update, changes)


def _add(connection: sa.Connection, column: str, counted: Rows) -> None:
    """Add the number of each user's rows to a count of theirs."""
    if len(counted):
        update = (
            users.update()
            .where(users.c.user_key == sa.bindparam("of_user"))
            .values({column: users.c[column] + sa.bindparam("more")})
        )
        found, counts = np.unique(counted["user_key"], return_counts=True)
        more = zip(found.tolist(), counts.tolist(), strict=True)
        connection.execute(update, [{"of_user": user, "more": count} for user, count in more])
