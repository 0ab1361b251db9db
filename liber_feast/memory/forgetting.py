"""Remove a user from the memory: what is left is a key without an id, a tombstone, and what calls have cost."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from liber_feast.errors import RetryableError
from liber_feast.memory.call_tables import calls
from liber_feast.memory.clock import now_us
from liber_feast.memory.connect import in_our_words
from liber_feast.memory.evidence_tables import partition_evidence
from liber_feast.memory.publications import has_unfinished, newest_created_time
from liber_feast.memory.schema import (
    behaviors,
    partitions,
    publications,
    published,
    recomputations,
    text_vectors,
    texts,
    users,
    waiting,
)
from liber_feast.memory.store import Memory
from liber_feast.memory.tombstones import (
    Tombstone,
    add_tombstone,
    keep_tombstone,
    tombstones_of,
    users_by_hash,
    wait_for_appends,
)

CHECKPOINT_S = 10.0
"""How long the write-ahead log of a SQLite file is waited for, which readers hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """What the memory had of a user."""

    behaviors: int = 0
    partitions: int = 0
    summaries: int = 0
    shifts: int = 0
    vectors: int = 0
    evidence: int = 0


def forget_user(connection: sa.Connection, user_id: str, *, until_time: int | None = None) -> Removed:
    """Remove a user, known or not, and refuse their behaviors up to now or to their newest, or up to `until_time`.

    The key is never used again: who still works on the user finds nothing under it. Costs stay, nobody's.
    """
    wait_for_appends(connection)
    now = now_us(connection)
    key = connection.scalar(sa.select(users.c.user_key).where(users.c.user_id == user_id).with_for_update())
    if until_time is None:
        newest = sa.select(sa.func.max(behaviors.c.event_time)).where(behaviors.c.user_key == key)
        until_time = max(now, connection.scalar(newest) or now)
    keep_tombstone(connection, user_id, now=now, until_time=until_time)
    connection.execute(calls.update().where(calls.c.user_id == user_id).values(user_id=""))
    return Removed() if key is None else _empty(connection, key, now=now)


def forget_again(connection: sa.Connection, known: Mapping[str, Tombstone]) -> int:
    """Forget in a copy of a memory the users whom the memory has forgotten since; return how many the copy knew."""
    before, count = tombstones_of(connection), 0
    names = users_by_hash(connection)
    for user_hash, tombstone in known.items():
        if user_hash in before and before[user_hash].until_time >= tombstone.until_time:
            continue
        if user_hash in names:
            forget_user(connection, names[user_hash], until_time=tombstone.until_time)
            count += 1
        else:
            add_tombstone(connection, tombstone)
    return count


def reserve_number(connection: sa.Connection, stage: str, *, when_unfinished: bool = False) -> int | None:
    """Return a publication number for something that is no publication; None where an earlier one is not done.

    A table that has the number takes none that is lower: what is begun has to be done first, unless it is part of
    what is written (`when_unfinished`). The caller holds the lease `publish`.
    """
    if has_unfinished(connection) and not when_unfinished:
        return None
    now = now_us(connection)
    created_time = max(now, newest_created_time(connection) + 1)
    row = publications.insert().values(stage=stage, created_time=created_time, done_time=now)
    (number,) = connection.execute(row).inserted_primary_key or (None,)
    return number


def erase_deleted(memory: Memory) -> None:
    """Remove what was deleted from the files of the database, too; other writers wait meanwhile.

    Raises:
        RetryableError: others read or write for longer than a transaction waits.
    """
    if memory.engine.dialect.name == "postgresql":
        with in_our_words(memory.engine), memory.engine.connect() as connection:
            names = [
                table.name for table in (users, behaviors, partitions, texts, text_vectors, partition_evidence, calls)
            ]
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")  # not part of a transaction
            alone.exec_driver_sql(f"VACUUM {', '.join(names)}")
        return
    connection_of_driver = memory.engine.raw_connection()
    try:
        with in_our_words(memory.engine):
            connection_of_driver.cursor().execute("VACUUM")
        _truncate_log(connection_of_driver.cursor(), name=str(memory.engine.url.database))
    finally:
        connection_of_driver.close()


def _truncate_log(cursor: sa.engine.interfaces.DBAPICursor, *, name: str) -> None:
    started = time.monotonic()
    while True:
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (is_busy, *_) = cursor.fetchone() or (0,)
        if not is_busy:
            return
        if time.monotonic() - started > CHECKPOINT_S:
            raise RetryableError(f"The memory {name} is being read, so its old pages stay. Run the same command again.")
        time.sleep(0.05)


def _empty(connection: sa.Connection, key: int, *, now: int) -> Removed:
    of_user = sa.select(texts.c.text_id).where(texts.c.user_key == key)
    count = sa.select(texts.c.stage, sa.func.count()).where(texts.c.user_key == key).group_by(texts.c.stage)
    by_stage: dict[str, int] = {stage: number for stage, number in connection.execute(count)}
    vectors = connection.execute(text_vectors.delete().where(text_vectors.c.text_id.in_(of_user))).rowcount
    gone = {
        table.name: connection.execute(table.delete().where(table.c.user_key == key)).rowcount
        for table in (recomputations, published, texts, partition_evidence, partitions, behaviors, waiting)
    }
    nothing = dict.fromkeys(("partition_count", "late_count", "duplicate_count", "behavior_count"), 0)
    nothing |= dict.fromkeys(("ahead_count", "tied_count"), 0)
    stub = {
        "user_id": f"forgotten/{uuid.uuid4()}",
        "forgotten_time": now,
        "sequence_published": users.c.sequence_number,
    }
    stub |= dict.fromkeys(("sealed_time", "sealed_behavior_id", "seal_time"))
    connection.execute(users.update().where(users.c.user_key == key).values({**stub, **nothing}))
    return Removed(
        behaviors=gone["behaviors"],
        partitions=gone["partitions"],
        summaries=by_stage.get("summary", 0),
        shifts=by_stage.get("shift", 0),
        vectors=vectors,
        evidence=gone["partition_evidence"],
    )
