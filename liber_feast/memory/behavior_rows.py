"""Behaviors as columns: how an append holds, orders, reads and writes many of them at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from liber_feast.behavior import BEHAVIOR_ID, EVENT_TIME, ITEM, RATING
from liber_feast.memory.bulk import (
    among,
    execute_many,
    insert_rows,
    join_pairs,
    pair_parameters,
    plain_rows,
)
from liber_feast.memory.schema import behaviors
from liber_feast.memory.user_states import Flags, Ints

TEXT = pa.large_string()
"""Of ids: without a limit on the bytes of a column."""

_COLUMNS = ("user_key", "order_time", "event_time", "rating", "behavior_id", "item_id")
_CACHED = sa.select(*(behaviors.c[name] for name in _COLUMNS)).where(
    behaviors.c.partition_index.is_(None), among(behaviors.c.user_key, "user_keys")
)
_ID, _PLACE = (behaviors.c.user_key, behaviors.c.behavior_id), (behaviors.c.user_key, behaviors.c.event_time)
_KNOWN = sa.select(*_ID).select_from(join_pairs(behaviors, on=_ID))
_COMPANY = sa.select(*_PLACE).distinct().select_from(join_pairs(behaviors, on=_PLACE))
_MOVE = (
    behaviors.update()
    .where(behaviors.c.user_key == sa.bindparam("of_user"), behaviors.c.behavior_id == sa.bindparam("of_behavior"))
    .values(partition_index=sa.bindparam("to_partition"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BehaviorRows:
    """Behaviors of users by key; `order_time` is a behavior's place in the cache, `is_new` whether it comes now."""

    user_key: Ints
    order_time: Ints
    event_time: Ints
    rating: npt.NDArray[np.float64]
    behavior_id: pa.LargeStringArray
    item_id: pa.LargeStringArray
    is_new: Flags

    def __len__(self) -> int:
        return len(self.user_key)

    def take(self, rows: Ints | Flags) -> "BehaviorRows":
        """Return some of the rows, by position or by a flag for each."""
        if rows.dtype == np.bool_ and rows.all():
            return self
        at = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        indices = pa.array(at)
        return BehaviorRows(
            user_key=self.user_key[at],
            order_time=self.order_time[at],
            event_time=self.event_time[at],
            rating=self.rating[at],
            behavior_id=self.behavior_id.take(indices),
            item_id=self.item_id.take(indices),
            is_new=self.is_new[at],
        )


def sent_rows(table: pa.Table, user_keys: Ints) -> BehaviorRows:
    """Return the rows of a canonical table as new behaviors."""
    times = pc.cast(table[EVENT_TIME], pa.int64()).to_numpy()
    return BehaviorRows(
        user_key=user_keys,
        order_time=times.copy(),
        event_time=times,
        rating=table[RATING].to_numpy(),
        behavior_id=table[BEHAVIOR_ID].cast(TEXT).combine_chunks(),
        item_id=pc.cast(table[ITEM], pa.string()).cast(TEXT).combine_chunks(),
        is_new=np.ones(len(table), np.bool_),
    )


def cached_rows(connection: sa.Connection, keys: Sequence[int]) -> BehaviorRows:
    """Return the users' short-term caches, in no order."""
    found = plain_rows(connection, _CACHED, {"user_keys": keys}) if len(keys) else []
    columns: dict[str, Sequence[Any]] = dict.fromkeys(_COLUMNS, ())
    if found:
        columns = dict(zip(_COLUMNS, zip(*found, strict=True), strict=True))
    return BehaviorRows(
        **{name: np.array(columns[name], np.int64) for name in _COLUMNS[:3]},
        rating=np.array(columns["rating"], np.float64),
        behavior_id=pa.array(columns["behavior_id"], TEXT),
        item_id=pa.array(columns["item_id"], TEXT),
        is_new=np.zeros(len(found), np.bool_),
    )


def joined(first: BehaviorRows, second: BehaviorRows) -> BehaviorRows:
    """Return the rows of both."""
    if not len(first):
        return second
    numbers = ("user_key", "order_time", "event_time", "rating", "is_new")
    return BehaviorRows(
        **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in numbers},
        **{
            name: pa.concat_arrays([getattr(first, name), getattr(second, name)]) for name in ("behavior_id", "item_id")
        },
    )


def ordered(rows: BehaviorRows) -> BehaviorRows:
    """Return the rows by user, place in the cache and id; ids are compared in ties alone, because texts sort slowly."""
    if not len(rows):
        return rows
    # A late behavior shares its order time with the last cached one and comes after it, whatever its id.
    is_late = rows.event_time < rows.order_time
    order = np.lexsort((is_late, rows.order_time, rows.user_key))
    starts = starts_of(rows.user_key[order], rows.order_time[order], is_late[order])
    is_tied = ~starts | ~np.r_[starts[1:], True]
    if is_tied.any():
        tied = order[is_tied]
        ids = rows.behavior_id.take(pa.array(tied)).to_numpy(zero_copy_only=False)
        order[is_tied] = tied[np.lexsort((ids, np.cumsum(starts)[is_tied]))]
    return rows.take(order)


def starts_of(*columns: npt.NDArray[Any]) -> Flags:
    """Return of rows that lie in groups which is the first of each: where one of `columns` changes."""
    starts = np.ones(len(columns[0]), np.bool_)
    starts[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return starts


def known(connection: sa.Connection, rows: BehaviorRows) -> Flags:
    """Return which rows' (user, behavior id) the memory has."""
    if not len(rows):
        return np.zeros(0, np.bool_)
    pairs = list(zip(rows.user_key.tolist(), texts(rows.behavior_id), strict=True))
    found = set(plain_rows(connection, _KNOWN, pair_parameters(pairs)))
    return np.fromiter((pair in found for pair in pairs), np.bool_, len(rows))


def has_company(connection: sa.Connection, rows: BehaviorRows) -> Flags:
    """Return at which rows' (user, event time) the memory has a behavior."""
    if not len(rows):
        return np.zeros(0, np.bool_)
    places = list(zip(rows.user_key.tolist(), rows.event_time.tolist(), strict=True))
    found = set(plain_rows(connection, _COMPANY, pair_parameters(list(dict.fromkeys(places)))))
    return np.fromiter((place in found for place in places), np.bool_, len(rows))


def insert_behaviors(connection: sa.Connection, rows: BehaviorRows, indexes: Ints) -> None:
    """Keep new behaviors; a negative index is that of the cache."""
    columns = {
        "user_key": rows.user_key.tolist(),
        "behavior_id": texts(rows.behavior_id),
        "item_id": texts(rows.item_id),
        "rating": rows.rating.tolist(),
        "event_time": rows.event_time.tolist(),
        "order_time": rows.order_time.tolist(),
        "partition_index": [None if index < 0 else index for index in indexes.tolist()],
    }
    insert_rows(connection, behaviors, columns)


def move_to_partitions(connection: sa.Connection, rows: BehaviorRows, indexes: Ints) -> None:
    """Take behaviors out of the cache into partitions."""
    columns = {
        "of_user": rows.user_key.tolist(),
        "of_behavior": texts(rows.behavior_id),
        "to_partition": indexes.tolist(),
    }
    execute_many(connection, _MOVE, columns)


def texts(column: pa.Array) -> list[str]:
    """Return a column of texts as Python has them."""
    values: list[str] = column.to_numpy(zero_copy_only=False).tolist()
    return values
