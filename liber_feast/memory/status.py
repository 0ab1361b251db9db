"""What the memory holds, in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sqlalchemy as sa

from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.bulk import execute_many, join_pairs, pair_parameters, plain_rows
from liber_feast.memory.clock import now_us
from liber_feast.memory.evidence_tables import item_vectors, partition_evidence
from liber_feast.memory.schema import (
    behaviors,
    partitions,
    publications,
    recomputations,
    text_vectors,
    texts,
    tombstones,
    users,
    waiting,
)
from liber_feast.memory.texts import has_summary_before, has_text

FRESHNESS_OVER = 10_000
"""Partitions that freshness is of, the newest that were pushed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Freshness:
    """Seconds from the push that filled a cache to its vector being readable online; null where there is none."""

    count: int
    p50_s: float | None
    p99_s: float | None


def memory_status(connection: sa.Connection) -> dict[str, Any]:
    """Return counts of users, behaviors, partitions and texts, and which versions are in use."""
    stages = {stage: _count(connection, partitions, has_text(stage)) for stage in (SUMMARY, SHIFT)}
    kinds = behavior_kinds(connection)
    return {
        "users": _count(connection, users, users.c.forgotten_time.is_(None)),
        "behaviors": _count(connection, behaviors),
        "cached_behaviors": _count(connection, behaviors, behaviors.c.partition_index.is_(None)),
        "late_behaviors": kinds["late"],
        "duplicate_behaviors": kinds["duplicate"],
        "sealed_partitions": _count(connection, partitions),
        "pending_partitions": pending_partition_count(connection),
        "failed_partitions": failed_partition_count(connection),
        "recomputations": _count(connection, recomputations),
        "summaries": stages[SUMMARY],
        "shifts": stages[SHIFT],
        "unfinished_publications": _count(connection, publications, publications.c.done_time.is_(None)),
        "conditions": _tally(connection, partitions.c.condition),
        "prompt_versions": _tally(connection, texts.c.prompt_version),
        "models": _tally(connection, texts.c.model),
        "text_versions": _text_versions(connection),
        "encoder_versions": _tally(connection, text_vectors.c.encoder_version),
        "item_vectors": _tally(connection, item_vectors.c.encoder_version),
        "evidence": _tally(connection, partition_evidence.c.encoder_version),
    }


def stream_status(connection: sa.Connection) -> dict[str, Any]:
    """Return who waits, what was odd about the behaviors that came, and freshness."""
    now = now_us(connection)
    oldest = connection.scalar(sa.select(sa.func.min(waiting.c.since)))
    kinds = behavior_kinds(connection)
    fresh = freshness(connection)
    return {
        "waiting_users": waiting_user_count(connection),
        "leased_users": _count(connection, waiting, waiting.c.lease_until >= now),
        "oldest_waiting_s": None if oldest is None else round(max(0, now - oldest) / 1e6, 3),
        "ahead_behaviors": kinds["ahead"],
        "tied_behaviors": kinds["tied"],
        "forgotten_users": _count(connection, tombstones),
        "freshness_count": fresh.count,
        "freshness_p50_s": fresh.p50_s,
        "freshness_p99_s": fresh.p99_s,
    }


def behavior_kinds(connection: sa.Connection) -> dict[str, int]:
    """Return how many behaviors of the users that the memory knows were new, and what was odd about which came."""
    columns = {kind: users.c[f"{kind}_count"] for kind in ("late", "ahead", "tied", "duplicate")}
    columns["new"] = users.c.behavior_count
    sums = sa.select(*(sa.func.coalesce(sa.func.sum(one), 0).label(kind) for kind, one in columns.items()))
    return {kind: int(count) for kind, count in connection.execute(sums).one()._mapping.items()}


def failed_partition_count(connection: sa.Connection) -> int:
    """Count the partitions of which a text failed."""
    return _count(connection, partitions, partitions.c.failure.is_not(None))


def waiting_user_count(connection: sa.Connection) -> int:
    """Count the users of whom something sealed is not yet readable online."""
    return _count(connection, waiting)


def mark_online(connection: sa.Connection, keys: Sequence[tuple[int, int]], *, now: int) -> list[float]:
    """Note that the vectors of partitions, (user_key, partition_index), are readable online at `now`, microseconds.

    Only the first time counts, and only partitions that a push filled. Return the seconds that each of these took.
    """
    pairs = list(dict.fromkeys(keys))
    if not pairs:
        return []
    found = plain_rows(connection, _NOT_ONLINE, pair_parameters(pairs))
    if found:
        users_of, indexes, pushed_times = zip(*found, strict=True)
        execute_many(connection, _MARK, {"of_user": users_of, "of_index": indexes, "at": [now] * len(found)})
        return [max(0, now - pushed_time) / 1e6 for pushed_time in pushed_times]
    return []


_KEY = (partitions.c.user_key, partitions.c.partition_index)
_NOT_ONLINE = (
    sa.select(*_KEY, partitions.c.pushed_time)
    .select_from(join_pairs(partitions, on=_KEY))
    .where(partitions.c.pushed_time.is_not(None), partitions.c.online_time.is_(None))
)
_MARK = (
    partitions.update()
    .where(_KEY[0] == sa.bindparam("of_user"), _KEY[1] == sa.bindparam("of_index"))
    .values(online_time=sa.bindparam("at"))
)


def freshness(connection: sa.Connection, *, last: int = FRESHNESS_OVER) -> Freshness:
    """Return the freshness of the partitions that became readable online last."""
    newest = (
        sa.select(partitions.c.online_time - partitions.c.pushed_time)
        .where(partitions.c.online_time.is_not(None), partitions.c.pushed_time.is_not(None))
        .order_by(partitions.c.online_time.desc())
        .limit(last)
    )
    found = connection.scalars(newest).all()
    if not found:
        return Freshness(count=0, p50_s=None, p99_s=None)
    p50, p99 = np.percentile(np.maximum(np.array(found, np.float64), 0) / 1e6, [50, 99])
    return Freshness(count=len(found), p50_s=round(float(p50), 4), p99_s=round(float(p99), 4))


def pending_partition_count(connection: sa.Connection) -> int:
    """Count the partitions that lack a text and have not failed.

    A summary is due for each, and a shift where an earlier partition of the user has a summary.
    """
    return connection.scalar(_pending()) or 0


@cache
def _pending() -> sa.Select[Any]:
    is_complete = has_text(SUMMARY) & (has_text(SHIFT) | ~has_summary_before())
    return sa.select(sa.func.count()).select_from(partitions).where(partitions.c.failure.is_(None), ~is_complete)


def failure_reasons(connection: sa.Connection) -> dict[str, int]:
    """Return the number of failed partitions by reason."""
    return _tally(connection, partitions.c.failure, partitions.c.failure.is_not(None))


def failed_user_keys(connection: sa.Connection, *, user_id: str | None = None) -> list[int]:
    """Return the users that have a failed partition: all of them, or the one of that id if it has."""
    query = sa.select(partitions.c.user_key).where(partitions.c.failure.is_not(None)).distinct()
    if user_id is not None:
        query = query.join(users, users.c.user_key == partitions.c.user_key).where(users.c.user_id == user_id)
    return list(connection.scalars(query.order_by(partitions.c.user_key)))


def _text_versions(connection: sa.Connection) -> dict[str, int]:
    """Return the number of texts in use, the newest of each partition and stage, by stage, prompt and model."""
    key = (texts.c.user_key, texts.c.partition_index, texts.c.stage)
    newest = sa.select(sa.func.max(texts.c.text_id).label("text_id")).group_by(*key).subquery("newest")
    columns = (texts.c.stage, texts.c.prompt_version, texts.c.model)
    query = sa.select(*columns, sa.func.count()).join(newest, newest.c.text_id == texts.c.text_id)
    rows = connection.execute(query.group_by(*columns).order_by(*columns))
    return {f"{stage} {prompt_version}/{model}": count for stage, prompt_version, model, count in rows}


def _count(connection: sa.Connection, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions)) or 0


def _tally(connection: sa.Connection, column: sa.Column[Any], *conditions: sa.ColumnElement[bool]) -> dict[str, int]:
    query = sa.select(column, sa.func.count()).where(*conditions)
    rows = connection.execute(query.group_by(column).order_by(column))
    return {str(value): count for value, count in rows}
