"""The recent behaviors of users: as feature rows, and written online of the users who sent some.

The rows of one snapshot carry its `users.sequence_number`, so that an online store keeps the newest of two writers.
Both views are written together, so that a store with transactions never shows a behavior without its sequence.
No lock of the memory is held while the online store is written: one that hangs stops no push but its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import CREATED_TIME, EVENT_TIME, ITEM, RATING, TIMESTAMP, USER
from liber_feast.memory import Memory
from liber_feast.memory.bulk import among, plain_rows
from liber_feast.memory.schema import behaviors, users
from liber_feast.memory.settings import setting

if TYPE_CHECKING:
    from liber_feast.publish import OnlineSink

BEHAVIORS, BEHAVIOR_SEQUENCE = "behaviors", "behavior_sequence"
"""The feature views."""
USERS_PER_WRITE = 1_000
"""Users whose online rows are written at once."""


class RowsOfUsers(Protocol):
    """What gives the rows of `behaviors` and `behavior_sequence`; a `Projection` does, too."""

    def behavior_rows(self, user_keys: Sequence[int]) -> dict[str, pa.Table]:
        """Return the newest rows of each view, of the users who have behaviors."""
        ...


def publish_sequences(
    memory: Memory,
    *,
    projection: Callable[[sa.Connection], RowsOfUsers],
    online: "OnlineSink",
    user_keys: Sequence[int] | None = None,
) -> int:
    """Write online `behaviors` and `behavior_sequence` of the users, all or some, who changed; return how many.

    Raises:
        OnlineStoreAway, StoreFailure: the online store cannot be written; the users stay changed.
    """
    written = 0
    pieces: list[Sequence[int] | None] = [None]
    if user_keys is not None:
        wanted = sorted(set(user_keys))
        pieces = [wanted[start : start + USERS_PER_WRITE] for start in range(0, len(wanted), USERS_PER_WRITE)]
    for piece in pieces:
        after = 0
        while True:
            with memory.reading() as connection:
                numbers = _changed(connection, piece, after=after)
                rows = projection(connection).behavior_rows(list(numbers)) if numbers else {}
            if not numbers:
                break
            online.write_together(rows)
            mark = partial(_mark, numbers=numbers, ids=rows[BEHAVIORS][USER].to_pylist())
            gone = memory.retrying(mark, what="sequence")
            if gone:
                online.delete(gone)
            written, after = written + len(numbers), max(numbers)
            if len(numbers) < USERS_PER_WRITE:
                break
    return written


def _changed(connection: sa.Connection, user_keys: Sequence[int] | None, *, after: int) -> dict[int, int]:
    """Return the numbers of the next users whose sequence is not online, by user key."""
    if user_keys is None:
        found = connection.execute(_CHANGED, {"after": after})
    else:
        found = connection.execute(_CHANGED_OF, {"after": after, "user_keys": user_keys})
    return {key: number for key, number in found.all()}


def _mark(connection: sa.Connection, *, numbers: Mapping[int, int], ids: Sequence[str | int]) -> list[str | int]:
    """Note what is online, by user key; users of one append have one number, mostly.

    Return which of `ids`, whose rows were just written, the memory has forgotten since they were read.
    """
    if connection.dialect.name == "postgresql":  # as an append does, so that the two never wait for each other
        connection.execute(_LOCK, {"user_keys": list(numbers)})
    keys: dict[int, list[int]] = {}
    for key, number in numbers.items():
        keys.setdefault(number, []).append(key)
    for number, some in keys.items():
        connection.execute(_MARK, {"user_keys": some, "number": number})
    if not connection.scalar(_IS_ONE_FORGOTTEN, {"user_keys": list(numbers)}):
        return []
    known = set(connection.scalars(_KNOWN_IDS, {"user_ids": [str(one) for one in ids]}))
    return [one for one in ids if str(one) not in known]


# Built once: what SQLAlchemy does to build a statement takes longer than to run it for a push.
_AMONG = among(users.c.user_key, "user_keys")
_CHANGED = (
    sa.select(users.c.user_key, users.c.sequence_number)
    .where(users.c.sequence_published < users.c.sequence_number, users.c.user_key > sa.bindparam("after"))
    .order_by(users.c.user_key)
    .limit(USERS_PER_WRITE)
)
_CHANGED_OF = _CHANGED.where(_AMONG)
_LOCK = sa.select(users.c.user_key).where(_AMONG).order_by(users.c.user_key).with_for_update(key_share=True)
_MARK = (
    users.update()
    .where(_AMONG, users.c.sequence_published < sa.bindparam("number"))
    .values(sequence_published=sa.bindparam("number"))
)
_IS_ONE_FORGOTTEN = sa.select(sa.exists().where(_AMONG, users.c.forgotten_time.isnot(None)))
_KNOWN_IDS = sa.select(users.c.user_id).where(among(users.c.user_id, "user_ids"))
_USERS = sa.select(users.c.user_key, users.c.user_id, users.c.behavior_count, users.c.sequence_number).where(
    users.c.forgotten_time.is_(None), _AMONG
)


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """The last `length` behaviors of users in one snapshot of the memory."""

    connection: sa.Connection
    length: int = field(kw_only=True)

    def behavior_rows(self, user_keys: Sequence[int]) -> dict[str, pa.Table]:
        """Return the newest rows of `behaviors` and `behavior_sequence` of each user who has behaviors.

        Each is as of the user's newest behavior and created, as it were, at the user's sequence number.
        """
        ids, counts, numbers = self._users(user_keys)
        rows = self._rows(sorted(ids))
        ends = np.flatnonzero(np.r_[np.diff(rows.user_key) != 0, True]) if len(rows.user_key) else np.empty(0, int)
        keys = rows.user_key[ends].tolist()
        when = {
            EVENT_TIME: pa.array(rows.event_time[ends]).cast(TIMESTAMP),
            CREATED_TIME: pa.array([numbers[key] for key in keys], pa.int64()).cast(TIMESTAMP),
        }
        who = {USER: pa.array([ids[key] for key in keys], pa.string()).cast(self._kind(USER))}
        items = rows.item_id.cast(self._kind(ITEM))
        ratings, times = pa.array(rows.rating), pa.array(rows.event_time)
        last = {ITEM: items.take(pa.array(ends)), RATING: ratings.take(pa.array(ends))}
        offsets = pa.array(np.r_[0, ends + 1].astype(np.int32))
        lists = {"item_ids": items, "ratings": ratings, "times": times}
        sequences = {name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()}
        sequences["behavior_count"] = pa.array([counts[key] for key in keys], pa.int64())
        return {BEHAVIORS: pa.table({**who, **last, **when}), BEHAVIOR_SEQUENCE: pa.table({**who, **sequences, **when})}

    def _users(self, user_keys: Sequence[int]) -> tuple[dict[int, str], dict[int, int], dict[int, int]]:
        """Return ids, counts of behaviors and numbers by user key; of users who were forgotten, nothing."""
        found = plain_rows(self.connection, _USERS, {"user_keys": user_keys})
        if not found:
            return {}, {}, {}
        keys, ids, counts, numbers = zip(*found, strict=True)
        return (
            dict(zip(keys, ids, strict=True)),
            dict(zip(keys, counts, strict=True)),
            dict(zip(keys, numbers, strict=True)),
        )

    def _rows(self, user_keys: Sequence[int]) -> "_Rows":
        """Return the last behaviors of each user by user key and time."""
        found = plain_rows(self.connection, _newest(self.length), {"user_keys": user_keys})
        columns: tuple[Sequence[Any], ...] = tuple(zip(*found, strict=True)) if found else ((), (), (), ())
        key = np.array(columns[0], np.int64)
        # Behaviors at the time of the oldest one that is shown may be too many.
        kept = np.searchsorted(key, key, side="right") - np.arange(len(key)) <= self.length
        return _Rows(
            user_key=key[kept],
            item_id=pa.array(columns[1], pa.string()).filter(pa.array(kept)),
            rating=np.array(columns[2], np.float64)[kept],
            event_time=np.array(columns[3], np.int64)[kept],
        )

    def _kind(self, column: str) -> pa.DataType:
        return pa.int64() if setting(self.connection, f"{column}_type") == "int64" else pa.string()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Behaviors by user key, column by column; times in microseconds."""

    user_key: npt.NDArray[np.int64]
    item_id: pa.Array
    rating: npt.NDArray[np.float64]
    event_time: npt.NDArray[np.int64]


@cache
def _newest(length: int) -> sa.Select[Any]:
    """Return a query of the behaviors that are not older than the last but `length - 1` of their user.

    For every user an index gives that time and the rows from then on, whatever the length of the history.
    """
    of_user = behaviors.alias("of_user")
    since = (
        sa.select(of_user.c.event_time)
        .where(of_user.c.user_key == users.c.user_key)
        .order_by(of_user.c.event_time.desc())
        .limit(1)
        .offset(length - 1)
        .correlate(users)
        .scalar_subquery()
    )
    start = sa.select(users.c.user_key, sa.func.coalesce(since, -(2**63)).label("since")).where(_AMONG).subquery()
    joined = start.join(
        behaviors, (behaviors.c.user_key == start.c.user_key) & (behaviors.c.event_time >= start.c.since)
    )
    columns = (behaviors.c.user_key, behaviors.c.item_id, behaviors.c.rating, behaviors.c.event_time)
    query = sa.select(*columns).select_from(joined)
    return query.order_by(start.c.user_key, behaviors.c.event_time, behaviors.c.behavior_id)
