"""What the memory has of users, read under locks that keep it true until the transaction ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from liber_feast.memory.bulk import among, execute_many, insert_new
from liber_feast.memory.schema import users
from liber_feast.partition import NEVER_SEALED

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_COUNTS = ("behavior_count", "duplicate_count", "late_count", "ahead_count", "tied_count")
_PLACES = ("partition_count", "sequence_number", "sealed_time", "seal_time")
_KEPT = (*_COUNTS, *_PLACES, "sealed_behavior_id")
_ZERO_AT_FIRST = tuple(column.name for column in users.columns if column.default is not None)
_KEYS = sa.select(users.c.user_id, users.c.user_key).where(among(users.c.user_id, "user_ids"))
_LOCK = (
    sa.select(users.c.user_key, users.c.user_id, *(users.c[name] for name in _KEPT))
    .where(among(users.c.user_key, "user_keys"))
    .order_by(users.c.user_key)
    .with_for_update()
)
_KEEP = (
    users.update()
    .where(users.c.user_key == sa.bindparam("of_user"))
    .values({name: sa.bindparam(name) for name in _KEPT})
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UserStates:
    """One row of `users` each, by ascending key; times of users without partitions are NEVER_SEALED."""

    user_key: Ints
    user_id: tuple[str, ...]
    sealed_behavior_id: list[str]
    columns: dict[str, Ints]

    def of(self, user_keys: Ints) -> Ints:
        """Return the positions of users by their keys; of users that are all new, keys have no gaps."""
        has_gaps = len(self.user_key) != np.ptp(self.user_key[[0, -1]]) + 1
        return np.searchsorted(self.user_key, user_keys) if has_gaps else user_keys - self.user_key[0]

    def add(self, column: str, user_keys: Ints) -> None:
        """Count one more for each of `user_keys`."""
        self.columns[column] += np.bincount(self.of(user_keys), minlength=len(self.user_key))

    def count(self, flags: Mapping[str, Flags], user_keys: Ints, *, now: int) -> None:
        """Count new behaviors of `user_keys`, each column those it flags, and give these users their next number.

        That is the time, or one more than before.
        """
        for column, is_one in flags.items():
            self.add(column, user_keys[is_one])
        numbers, changed = self.columns["sequence_number"], self.of(np.unique(user_keys))
        numbers[changed] = np.maximum(numbers[changed] + 1, now)


def locked_states(connection: sa.Connection, user_ids: Sequence[str]) -> UserStates:
    """Return the states of users by id; those that the memory lacks are added.

    Users are added in the order of their ids and locked in that of their keys, so that two transactions never wait
    for each other. `drop_forgotten` keeps them from being forgotten meanwhile.
    """
    keys = user_keys(connection, user_ids)
    unknown = sorted(set(user_ids) - keys.keys())
    if unknown:
        zeros = {name: [0] * len(unknown) for name in _ZERO_AT_FIRST}
        execute_many(connection, insert_new(connection, users), {"user_id": unknown, **zeros})
        keys |= user_keys(connection, unknown)
    return lock(connection, list(keys.values()))


def user_keys(connection: sa.Connection, user_ids: Sequence[str]) -> dict[str, int]:
    """Return the keys of those users that the memory has; nothing is locked."""
    return {user_id: key for user_id, key in connection.execute(_KEYS, {"user_ids": user_ids}).all()}


def lock(connection: sa.Connection, keys: Sequence[int]) -> UserStates:
    """Lock users by key and return their states as the locks found them.

    The states are columns of the locked rows alone: of anything else in that statement, PostgreSQL would return what
    was there before it waited.
    """
    found = connection.execute(_LOCK, {"user_keys": sorted(keys)}).all()
    names = ("user_key", "user_id", *_KEPT)
    columns = dict(zip(names, zip(*found, strict=True), strict=True)) if found else dict.fromkeys(names, ())
    numbers = {
        name: np.array([NEVER_SEALED if value is None else value for value in columns[name]], np.int64)
        for name in (*_COUNTS, *_PLACES)
    }
    return UserStates(
        user_key=np.array(columns["user_key"], np.int64),
        user_id=columns["user_id"],
        sealed_behavior_id=[one or "" for one in columns["sealed_behavior_id"]],
        columns=numbers,
    )


def keep(connection: sa.Connection, states: UserStates) -> None:
    """Write the states back."""
    never = states.columns["sealed_time"] == NEVER_SEALED
    values: dict[str, Any] = {name: states.columns[name].tolist() for name in (*_COUNTS, *_PLACES)}
    values["sealed_behavior_id"] = states.sealed_behavior_id
    for name in ("sealed_time", "seal_time", "sealed_behavior_id"):
        values[name] = [None if without else value for without, value in zip(never, values[name], strict=True)]
    values["of_user"] = states.user_key.tolist()
    execute_many(connection, _KEEP, values)
