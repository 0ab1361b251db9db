"""What the memory holds, in numbers."""

from typing import Any

import sqlalchemy as sa

from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.schema import behaviors, partitions, publications, recomputations, text_vectors, texts, users
from liber_feast.memory.texts import has_summary_before, has_text


def memory_status(connection: sa.Connection) -> dict[str, Any]:
    """Return counts of users, behaviors, partitions and texts, and which versions are in use."""
    stages = {stage: _count(connection, partitions, has_text(stage)) for stage in (SUMMARY, SHIFT)}
    late, duplicate = connection.execute(
        sa.select(sa.func.sum(users.c.late_count), sa.func.sum(users.c.duplicate_count))
    ).one()
    return {
        "users": _count(connection, users),
        "behaviors": _count(connection, behaviors),
        "cached_behaviors": _count(connection, behaviors, behaviors.c.partition_index.is_(None)),
        "late_behaviors": int(late or 0),
        "duplicate_behaviors": int(duplicate or 0),
        "sealed_partitions": _count(connection, partitions),
        "pending_partitions": pending_partition_count(connection),
        "failed_partitions": _count(connection, partitions, partitions.c.failure.is_not(None)),
        "recomputations": _count(connection, recomputations),
        "summaries": stages[SUMMARY],
        "shifts": stages[SHIFT],
        "unfinished_publications": _count(connection, publications, publications.c.done_time.is_(None)),
        "conditions": _tally(connection, partitions.c.condition),
        "prompt_versions": _tally(connection, texts.c.prompt_version),
        "models": _tally(connection, texts.c.model),
        "text_versions": _text_versions(connection),
        "encoder_versions": _tally(connection, text_vectors.c.encoder_version),
    }


def pending_partition_count(connection: sa.Connection) -> int:
    """Count the partitions that lack a text and have not failed.

    A summary is due for each, and a shift where an earlier partition of the user has a summary.
    """
    is_complete = has_text(SUMMARY) & (has_text(SHIFT) | ~has_summary_before())
    return _count(connection, partitions, partitions.c.failure.is_(None), ~is_complete)


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
