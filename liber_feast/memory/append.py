"""Append behaviors to the memory and seal the partitions they fill, in the caller's transaction.

The short-term cache alone is the state of Algorithm 1: cached and new rows are laid in one order and cut by the
vectorized rule, so that any split of a stream gives the partitions of one append. Users are locked before anything of
theirs is read, so that of two appends for a user the second sees what the first did.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from liber_feast.behavior import ITEM, USER
from liber_feast.errors import InvalidBehaviors
from liber_feast.memory import user_states
from liber_feast.memory.behavior_rows import (
    BehaviorRows,
    cached_rows,
    has_company,
    insert_behaviors,
    joined,
    known,
    move_to_partitions,
    ordered,
    sent_rows,
    starts_of,
    texts,
)
from liber_feast.memory.bulk import among, execute_many, insert_new, insert_rows
from liber_feast.memory.clock import now_us
from liber_feast.memory.schema import behaviors, partitions, settings, waiting
from liber_feast.memory.tombstones import drop_forgotten
from liber_feast.memory.user_states import Flags, Ints, UserStates
from liber_feast.partition import (
    Condition,
    ItemVectors,
    TimeCondition,
    content_hashes,
    partition_table,
    seal_times,
)

VectorsOf: TypeAlias = Callable[[Sequence[str]], ItemVectors]
"""For the drift rule: the vectors of items by id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What one append changed."""

    behavior_count: int = 0
    duplicate_count: int = 0
    late_count: int = 0
    ahead_count: int = 0
    """New behaviors later than the memory's clock."""
    tied_count: int = 0
    """New behaviors at the time of another one of their user."""
    forgotten_count: int = 0
    """Behaviors from before their user was forgotten; they were not taken."""
    sealed_count: int = 0
    user_keys: tuple[int, ...] = ()
    """Users that sent behaviors, new or not: a push sent again after a crash is to finish what the first one left."""

    def plus(self, other: "Appended") -> "Appended":
        """Return what this append and another one changed."""
        return Appended(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seal:
    """How partitions are sealed: by what rule, for which push (its time, microseconds; None: none) and when."""

    condition: Condition
    pushed_time: int | None
    now: int


def append(
    connection: sa.Connection,
    table: pa.Table,
    *,
    condition: Condition,
    repeated: pa.Table | None = None,
    item_vectors: VectorsOf | None = None,
    pushed_time: int | None = None,
) -> Appended:
    """Append a canonical behavior table; see `Memory.append`. `pushed_time`: when the push came, microseconds."""
    if not len(table):  # its columns may be of any type
        return Appended()
    table, forgotten_count = drop_forgotten(connection, table)
    if not len(table):
        return Appended(forgotten_count=forgotten_count)
    _check_id_types(connection, table)
    states, sent = _sent(connection, table)
    is_known = _is_known(connection, sent, states)
    rows = sent.take(~is_known)
    cached, now = _caches(connection, rows, states), now_us(connection)
    flags = {
        "behavior_count": rows.is_new,
        "late_count": _is_late(rows, states),
        "ahead_count": rows.event_time > now,
        "tied_count": _is_tied(connection, rows, cached=cached, states=states),
    }
    states.count(flags, rows.user_key, now=now)
    duplicates = np.concatenate([sent.user_key[is_known], _keys_of(repeated, states)])
    states.add("duplicate_count", duplicates)
    _place_late(rows, flags["late_count"], cached=cached, states=states)
    every = ordered(joined(cached, rows))
    ordinals = _ordinals(every, condition=condition, item_vectors=item_vectors)
    sealing = _Seal(condition=condition, pushed_time=pushed_time, now=now)
    sealed_count = _write(connection, every, ordinals, states=states, seal=sealing)
    user_states.keep(connection, states)
    return Appended(
        **{name: int(is_one.sum()) for name, is_one in flags.items()},
        duplicate_count=len(duplicates),
        forgotten_count=forgotten_count,
        sealed_count=sealed_count,
        user_keys=tuple(np.unique(sent.user_key).tolist()),
    )


def seal_idle(connection: sa.Connection, idle_at: int, *, condition: Condition) -> int:
    """Seal the caches that have been idle at `idle_at`, microseconds; return how many."""
    if not isinstance(condition, TimeCondition) or condition.idle is None:
        return 0
    latest = idle_at - condition.idle // timedelta(microseconds=1)
    idle = (
        sa.select(behaviors.c.user_key)
        .where(behaviors.c.partition_index.is_(None))
        .group_by(behaviors.c.user_key)
        .having(sa.func.max(behaviors.c.order_time) <= latest)
    )
    keys = connection.scalars(idle).all()
    if not keys:
        return 0
    states = user_states.lock(connection, keys)
    rows = ordered(cached_rows(connection, states.user_key.tolist()))  # again, now that nobody else changes them
    if not len(rows):
        return 0
    starts = np.flatnonzero(starts_of(rows.user_key))
    last = np.append(starts[1:], len(rows)) - 1
    rows = rows.take(np.repeat(rows.order_time[last] <= latest, last - starts + 1))
    seal = _Seal(condition=condition, pushed_time=None, now=now_us(connection))
    sealed_count = _write(connection, rows, np.zeros(len(rows), np.int64), states=states, seal=seal)
    user_states.keep(connection, states)
    return sealed_count


def items_in_play(connection: sa.Connection, table: pa.Table) -> list[str]:
    """Return the ids of the items in `table` and in its users' caches: those whose vectors the drift rule needs."""
    user_ids = [str(user) for user in pc.unique(table[USER]).to_pylist()]
    cached = cached_rows(connection, list(user_states.user_keys(connection, user_ids).values()))
    return sorted({*texts(cached.item_id), *(str(item) for item in pc.unique(table[ITEM]).to_pylist())})


def encoded_before(item_vectors: VectorsOf, items: Sequence[str]) -> VectorsOf:
    """Return what gives the vectors of `items` that were made now, and asks again only for others."""
    vectors, ready = item_vectors(items), set(items)
    return lambda wanted: vectors if ready.issuperset(wanted) else item_vectors(wanted)


def _check_id_types(connection: sa.Connection, table: pa.Table) -> None:
    """Keep the types of ids with the first append; of two at once, one is the first and the other is compared."""
    found = {f"{column}_type": str(table.schema.field(column).type) for column in (USER, ITEM)}
    kept = _kept_types(connection, found)
    if kept.keys() != found.keys():
        rows = [{"name": name, "value": value} for name, value in sorted(found.items())]
        connection.execute(insert_new(connection, settings), rows)
        kept = _kept_types(connection, found)
    for column in (USER, ITEM):
        name = f"{column}_type"
        if kept[name] != found[name]:
            raise InvalidBehaviors(
                f"behaviors: column {column!r} has type {found[name]}, but the memory holds {kept[name]} ids."
                " Use one type of ids.",
                column=column,
            )


def _kept_types(connection: sa.Connection, names: Iterable[str]) -> dict[str, str]:
    return {name: value for name, value in connection.execute(_SETTINGS, {"names": list(names)})}


_SETTINGS = sa.select(settings.c.name, settings.c.value).where(among(settings.c.name, "names"))


def _sent(connection: sa.Connection, table: pa.Table) -> tuple[UserStates, BehaviorRows]:
    """Lock the users of a table that is not empty; return their states and the rows."""
    encoded = table[USER].combine_chunks().dictionary_encode()
    user_ids = [str(user) for user in encoded.dictionary.to_pylist()]
    states = user_states.locked_states(connection, user_ids)
    keys = dict(zip(states.user_id, states.user_key.tolist(), strict=True))
    codes = np.array([keys[user] for user in user_ids], np.int64)
    return states, sent_rows(table, codes[encoded.indices.to_numpy()])


def _keys_of(repeated: pa.Table | None, states: UserStates) -> Ints:
    """Return the keys of the users of rows that were left out, of those users who have a state."""
    keys = dict(zip(states.user_id, states.user_key.tolist(), strict=True))
    ids = repeated[USER].to_pylist() if repeated is not None else []
    return np.array([keys[user] for user in map(str, ids) if user in keys], np.int64)


def _is_known(connection: sa.Connection, rows: BehaviorRows, states: UserStates) -> Flags:
    """Return which rows the memory has; it is asked only about users that it has behaviors of."""
    found = np.zeros(len(rows), np.bool_)
    maybe = np.flatnonzero(states.columns["behavior_count"][states.of(rows.user_key)])
    found[maybe] = known(connection, rows.take(maybe))
    return found


def _caches(connection: sa.Connection, rows: BehaviorRows, states: UserStates) -> BehaviorRows:
    """Return the short-term caches of the users of `rows`."""
    keys = np.unique(rows.user_key)
    return cached_rows(connection, keys[states.columns["behavior_count"][states.of(keys)] > 0].tolist())


def _is_late(rows: BehaviorRows, states: UserStates) -> Flags:
    """Return which rows' places in time, (event time, behavior id), were sealed before."""
    users_of = states.of(rows.user_key)
    sealed_time = states.columns["sealed_time"][users_of]
    late: Flags = rows.event_time < sealed_time
    tied = np.flatnonzero(rows.event_time == sealed_time)
    for row, behavior_id in zip(tied.tolist(), texts(rows.behavior_id.take(pa.array(tied))), strict=True):
        late[row] = behavior_id < states.sealed_behavior_id[users_of[row]]
    return late


def _is_tied(connection: sa.Connection, rows: BehaviorRows, *, cached: BehaviorRows, states: UserStates) -> Flags:
    """Return which new rows are at the time of another behavior of their user that is cached or sealed, or before them.

    Of n behaviors at one time n - 1 are tied, in however many appends they come.
    """
    user_keys = np.concatenate([rows.user_key, cached.user_key])
    times = np.concatenate([rows.event_time, cached.event_time])
    is_new = np.arange(len(times)) < len(rows)
    order = np.lexsort((is_new, times, user_keys))
    tied = np.zeros(len(order), np.bool_)
    if len(order):
        tied[order] = ~starts_of(user_keys[order], times[order])
    found = tied[: len(rows)]
    maybe = np.flatnonzero(~found & (rows.event_time <= states.columns["sealed_time"][states.of(rows.user_key)]))
    found[maybe] = has_company(connection, rows.take(maybe))
    return found


def _place_late(rows: BehaviorRows, is_late: Flags, *, cached: BehaviorRows, states: UserStates) -> None:
    """Give late rows the order time of the end of their user's cache (of the last seal, where it is empty)."""
    ends = states.columns["sealed_time"].copy()
    np.maximum.at(ends, states.of(cached.user_key), cached.order_time)
    rows.order_time[is_late] = ends[states.of(rows.user_key[is_late])]


def _ordinals(rows: BehaviorRows, *, condition: Condition, item_vectors: VectorsOf | None) -> Ints:
    """Return the ordinal of each row's new partition within its user, or -1 where it stays in the cache."""
    if item_vectors is None:
        return partition_table(rows.user_key, rows.order_time, condition=condition)
    items = rows.item_id.dictionary_encode()
    names = texts(items.dictionary)
    vectors = item_vectors(sorted(names))
    return partition_table(
        rows.user_key,
        rows.order_time,
        condition=condition,
        item_codes=vectors.codes(names)[items.indices.to_numpy()],
        item_vectors=vectors.table,
    )


def _write(
    connection: sa.Connection,
    rows: BehaviorRows,
    ordinals: Ints,
    *,
    states: UserStates,
    seal: _Seal,
) -> int:
    """Keep what is new of `rows`, which lie in order, and seal partitions; return how many."""
    first = states.columns["partition_count"][states.of(rows.user_key)]
    indexes = np.where(ordinals < 0, -1, ordinals + first)
    if rows.is_new.any():
        insert_behaviors(connection, rows.take(rows.is_new), indexes[rows.is_new])
    is_sealed = ordinals >= 0
    if not is_sealed.any():
        return 0
    moved = is_sealed & ~rows.is_new
    if moved.any():
        move_to_partitions(connection, rows.take(moved), indexes[moved])
    sealed = rows.take(is_sealed)
    let_wait(connection, np.unique(sealed.user_key).tolist(), now=seal.now)
    return _seal(connection, sealed, indexes[is_sealed], states=states, seal=seal)


def _seal(
    connection: sa.Connection,
    rows: BehaviorRows,
    indexes: Ints,
    *,
    states: UserStates,
    seal: _Seal,
) -> int:
    """Keep the partitions that `rows` make, and move their users' states; return how many."""
    starts = np.flatnonzero(starts_of(rows.user_key, indexes))
    keys, latest = rows.user_key[starts], np.maximum.reduceat(rows.event_time, starts)
    users_of = states.of(keys)
    seals = seal_times(latest, user_codes=keys, previous_us=states.columns["seal_time"][users_of])
    hashes = content_hashes(
        rows.behavior_id, rows.item_id, ratings=rows.rating, times_us=rows.event_time, starts=starts
    )
    columns: dict[str, Sequence[Any]] = {
        "user_key": keys.tolist(),
        "partition_index": indexes[starts].tolist(),
        "partition_hash": hashes,
        "behavior_count": np.diff(starts, append=len(rows)).tolist(),
        "first_time": np.minimum.reduceat(rows.event_time, starts).tolist(),
        "last_time": latest.tolist(),
        "seal_time": seals.tolist(),
        "condition": [seal.condition.describe()] * len(starts),
        "attempts": [0] * len(starts),
        "pushed_time": [seal.pushed_time] * len(starts),
    }
    insert_rows(connection, partitions, columns)
    states.columns["partition_count"][users_of] = indexes[starts] + 1  # the last one of a user wins
    states.columns["seal_time"][users_of] = seals
    _move_places(rows, states)
    return len(starts)


def _move_places(rows: BehaviorRows, states: UserStates) -> None:
    """Move each user's place in time, (event time, behavior id), to the newest of the rows just sealed."""
    starts = np.flatnonzero(starts_of(rows.user_key))
    newest = np.repeat(np.maximum.reduceat(rows.event_time, starts), np.diff(starts, append=len(rows)))
    last = rows.take(rows.event_time == newest)
    sealed_time = states.columns["sealed_time"]
    for user, time, name in zip(
        states.of(last.user_key).tolist(), last.event_time.tolist(), texts(last.behavior_id), strict=True
    ):
        before = (int(sealed_time[user]), states.sealed_behavior_id[user])
        sealed_time[user], states.sealed_behavior_id[user] = max(before, (time, name))


def let_wait(connection: sa.Connection, keys: Sequence[int], *, now: int) -> None:
    """Note that something of these users is not yet readable online; one who waits already waits for more.

    `keys` are ascending, so that of two that let the same users wait one waits for the other.
    """
    firsts = {"number": 1, "since": now, "not_before": 0, "claim_count": 0}
    columns = {name: [value] * len(keys) for name, value in firsts.items()}
    execute_many(connection, _wait_statement(connection.dialect.name), {"user_key": keys, **columns})


@cache
def _wait_statement(dialect: str) -> sa.Insert:
    on_postgresql = dialect == "postgresql"
    insert = (postgresql.insert if on_postgresql else sqlite.insert)(waiting)
    since = (sa.func.least if on_postgresql else sa.func.min)(waiting.c.since, insert.excluded.since)
    return insert.on_conflict_do_update(
        index_elements=[waiting.c.user_key],
        set_={
            "number": waiting.c.number + sa.literal_column("1"),
            "since": since,
            "not_before": sa.literal_column("0"),
        },
    )
