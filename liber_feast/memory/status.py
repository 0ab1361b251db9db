"""What the memory holds, in numbers."""

from typing import Any

import sqlalchemy as sa

from liber_feast.memory.schema import behaviors, partitions, publications, text_vectors, texts, users
from liber_feast.memory.texts import SHIFT, SUMMARY, has_text


def memory_status(connection: sa.Connection) -> dict[str, Any]:
    """Return counts of users, behaviors, partitions and texts, and which versions are in use."""
    stages = {stage: _count(connection, texts, texts.c.stage == stage) for stage in (SUMMARY, SHIFT)}
    sealed = _count(connection, partitions)
    late, duplicate = connection.execute(
        sa.select(sa.func.sum(users.c.late_count), sa.func.sum(users.c.duplicate_count))
    ).one()
    return {
        "users": _count(connection, users),
        "behaviors": _count(connection, behaviors),
        "cached_behaviors": _count(connection, behaviors, behaviors.c.partition_index.is_(None)),
        "late_behaviors": int(late or 0),
        "duplicate_behaviors": int(duplicate or 0),
        "sealed_partitions": sealed,
        "pending_partitions": sealed - _complete(connection),
        "failed_partitions": _count(connection, partitions, partitions.c.failure.is_not(None)),
        "summaries": stages[SUMMARY],
        "shifts": stages[SHIFT],
        "unfinished_publications": _count(connection, publications, publications.c.done_time.is_(None)),
        "conditions": _tally(connection, partitions.c.condition),
        "prompt_versions": _tally(connection, texts.c.prompt_version),
        "models": _tally(connection, texts.c.model),
        "encoder_versions": _tally(connection, text_vectors.c.encoder_version),
    }


def _complete(connection: sa.Connection) -> int:
    """Count the partitions with every text that is due: a summary, and from the user's second on a shift."""
    return _count(connection, partitions, has_text(SUMMARY), has_text(SHIFT) | (partitions.c.partition_index == 0))


def _count(connection: sa.Connection, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions)) or 0


def _tally(connection: sa.Connection, column: sa.Column[Any]) -> dict[str, int]:
    rows = connection.execute(sa.select(column, sa.func.count()).group_by(column).order_by(column))
    return {str(value): count for value, count in rows}
