"""Who was forgotten, known by a keyed hash alone, so that a log sent again brings nothing of them back."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import EVENT_TIME, USER
from liber_feast.memory.bulk import insert_new, insert_or_update
from liber_feast.memory.migrations import TOMBSTONE_KEY
from liber_feast.memory.schema import tombstones, users
from liber_feast.memory.settings import setting
from liber_feast.memory.texts import user_chunks

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_IS_ONE_THERE = sa.select(sa.exists(sa.select(tombstones.c.user_hash)))
_NEVER = np.iinfo(np.int64).min
_ORDER_OF_TRANSACTIONS = 7_236_824
"""PostgreSQL's lock between those that append and one that forgets; SQLite has one writer at a time anyway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """Times in microseconds: when a user was forgotten, and up to when behaviors are refused."""

    user_hash: str
    forgotten_time: int
    until_time: int


def drop_forgotten(connection: sa.Connection, table: pa.Table) -> tuple[pa.Table, int]:
    """Return a canonical behavior table without what was forgotten, and how many rows that were.

    A row is dropped where its user has a tombstone and its event time is not later than that says; it is counted
    there. To be called before anything else in the transaction that appends: nobody is forgotten until it ends.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_ORDER_OF_TRANSACTIONS)))
    times = table[EVENT_TIME].cast(pa.int64()).to_numpy()
    is_dropped, hashes = _forgotten(connection, table[USER], times=times)
    if not is_dropped.any():
        return table, 0
    for user_hash, count in sorted(Counter(hashes).items()):  # in one order, so that none waits in a circle
        counted = tombstones.update().where(tombstones.c.user_hash == user_hash)
        connection.execute(counted.values(refused_count=tombstones.c.refused_count + count))
    return table.filter(pa.array(~is_dropped)), len(hashes)


def is_forgotten(connection: sa.Connection, user_ids: pa.ChunkedArray, *, times: Ints) -> Flags:
    """Return which rows a tombstone refuses, by their users and event times in microseconds; nothing is counted."""
    return _forgotten(connection, user_ids, times=times)[0]


def _forgotten(connection: sa.Connection, user_ids: pa.ChunkedArray, *, times: Ints) -> tuple[Flags, list[str]]:
    """Return which rows a tombstone refuses, and the hashes of their users, row by row."""
    nobody: tuple[Flags, list[str]] = (np.zeros(len(times), np.bool_), [])
    if not connection.scalar(_IS_ONE_THERE):
        return nobody
    sent = user_ids.combine_chunks().dictionary_encode()
    names = [str(user) for user in sent.dictionary.to_pylist()]
    found = _of_users(connection, names)
    if not found:
        return nobody
    until = np.array([found[name].until_time if name in found else _NEVER for name in names], np.int64)
    places = sent.indices.to_numpy(zero_copy_only=False)
    is_dropped: Flags = times <= until[places]
    return is_dropped, [found[names[place]].user_hash for place in places[is_dropped].tolist()]


def keep_tombstone(connection: sa.Connection, user_id: str, *, now: int, until_time: int) -> None:
    """Refuse behaviors of a user up to `until_time` from now on, microseconds; a later time that was said stays."""
    (user_hash,) = _hashes(connection, [user_id])
    found = connection.execute(sa.select(tombstones).where(tombstones.c.user_hash == user_hash)).one_or_none()
    connection.execute(
        insert_or_update(connection, tombstones).values(
            user_hash=user_hash,
            forgotten_time=now,
            until_time=max(until_time, found.until_time if found else until_time),
            refused_count=found.refused_count if found else 0,
        )
    )


def tombstones_of(connection: sa.Connection) -> dict[str, Tombstone]:
    """Return every tombstone by its hash."""
    return {row.user_hash: _tombstone(row) for row in connection.execute(sa.select(tombstones))}


def add_tombstone(connection: sa.Connection, tombstone: Tombstone) -> None:
    """Keep the tombstone of a user whom this memory never knew."""
    row = insert_new(connection, tombstones).values(
        user_hash=tombstone.user_hash,
        forgotten_time=tombstone.forgotten_time,
        until_time=tombstone.until_time,
        refused_count=0,
    )
    connection.execute(row)


def users_by_hash(connection: sa.Connection) -> dict[str, str]:
    """Return the ids of all users of the memory by the hash that a tombstone would have."""
    names = list(connection.scalars(sa.select(users.c.user_id).where(users.c.forgotten_time.is_(None))))
    return dict(zip(_hashes(connection, names), names, strict=True))


def wait_for_appends(connection: sa.Connection) -> None:
    """Let every append that has begun end first, and the next ones wait until this transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ORDER_OF_TRANSACTIONS)))


def _of_users(connection: sa.Connection, user_ids: list[str]) -> dict[str, Tombstone]:
    """Return the tombstones of those users that have one, by id."""
    names = dict(zip(_hashes(connection, user_ids), user_ids, strict=True))
    query = sa.select(tombstones)
    rows = (
        row
        for some in user_chunks(list(names))
        for row in connection.execute(query.where(tombstones.c.user_hash.in_(some)))
    )
    return {names[row.user_hash]: _tombstone(row) for row in rows}


def _tombstone(row: sa.Row[Any]) -> Tombstone:
    return Tombstone(user_hash=row.user_hash, forgotten_time=row.forgotten_time, until_time=row.until_time)


def _hashes(connection: sa.Connection, user_ids: Iterable[str]) -> list[str]:
    key = bytes.fromhex(setting(connection, TOMBSTONE_KEY) or "")
    return [hashlib.blake2b(user.encode(), key=key, digest_size=16).hexdigest() for user in user_ids]
