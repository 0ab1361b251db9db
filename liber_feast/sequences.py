"""Write online the recent behaviors of the users who sent some."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from liber_feast.memory import Memory
from liber_feast.memory.schema import users
from liber_feast.projection import Projection

if TYPE_CHECKING:
    from liber_feast.publish import OnlineSink

USERS_PER_WRITE = 1_000
"""Users whose online rows are written at once."""


def publish_sequences(
    memory: Memory,
    *,
    projection: Callable[[sa.Connection], Projection],
    online: "OnlineSink",
    user_keys: Sequence[int] | None = None,
) -> int:
    """Write online `behaviors` and `behavior_sequence` of the users, all or some, who changed; return how many."""
    written = 0
    while True:
        with memory.writing("sequence") as connection:
            stale = sa.select(users.c.user_key).where(users.c.sequence_published < users.c.sequence_number)
            if user_keys is not None:
                stale = stale.where(users.c.user_key.in_(user_keys))
            keys = connection.scalars(stale.limit(USERS_PER_WRITE).with_for_update()).all()
            if not keys:
                return written
            for view, rows in projection(connection).behavior_rows(keys).items():
                if len(rows):
                    online.write(view, rows)
            fresh = users.update().where(users.c.user_key.in_(keys))
            connection.execute(fresh.values(sequence_published=users.c.sequence_number))
            written += len(keys)
