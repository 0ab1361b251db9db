"""Which texts are missing: never written, or to be written anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.bulk import insert_new
from liber_feast.memory.schema import partitions, recomputations, texts
from liber_feast.memory.texts import PartitionKey, Whose, has_text, is_marked, newest_text_id, of_users


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingShift:
    """A partition whose shift is missing, and the earlier one whose summary it is made from."""

    user_key: int
    partition_index: int
    previous_partition_index: int


def missing_summaries(
    connection: sa.Connection, *, with_failed: bool, user_keys: Sequence[int] | None = None
) -> list[PartitionKey]:
    """Return the sealed partitions whose summary is missing, of all users or of some, by user and index.

    One that failed is left out, unless `with_failed`.
    """
    rows = of_users(connection, lambda whose: _summaries(whose, with_failed=with_failed), user_keys)
    return [(row.user_key, row.partition_index) for row in rows]


def missing_shifts(
    connection: sa.Connection, *, with_failed: bool, user_keys: Sequence[int] | None = None
) -> list[MissingShift]:
    """Return the shifts that are missing and can be asked for now, of all users or of some, by user and index.

    A shift is made from the partition's summary and the one before, that of the last earlier partition that has one.
    It waits for its own summary, and as long as that of an earlier partition is missing and has not failed.
    """
    rows = of_users(connection, lambda whose: _shifts(whose, with_failed=with_failed), user_keys)
    found = [row for row in rows if row.previous_partition_index is not None]
    if not found:
        return []
    awaited: dict[int, int] = {}
    for user_key, index in missing_summaries(connection, with_failed=False, user_keys=user_keys):
        awaited.setdefault(user_key, index)
    return [
        MissingShift(**row._mapping)
        for row in found
        if awaited.get(row.user_key, row.partition_index) >= row.partition_index
    ]


def mark_recomputations(
    connection: sa.Connection, *, since: int, stages: Sequence[str], asked_time: int, prompt_version: str, model: str
) -> int:
    """Let the texts of `stages` be written anew that partitions sealed at or after `since`, microseconds, have.

    Where texts that were marked before still wait, this goes on with them: one that was written since those were
    marked, and of the prompt and model in use, is not marked again. `asked_time` is of the clock that dates texts.
    Return the number of texts that were not to be written anew before.
    """
    begun_time = connection.scalar(sa.select(sa.func.min(recomputations.c.asked_time)))
    first_time = asked_time if begun_time is None else begun_time
    count = 0
    for stage in stages:
        columns = (partitions.c.user_key, partitions.c.partition_index, sa.literal(stage), sa.literal(first_time))
        chosen = sa.select(*columns).where(partitions.c.seal_time >= since, has_text(stage))
        if begun_time is not None:
            newest = texts.alias("newest")
            is_in_use = (newest.c.prompt_version == prompt_version) & (newest.c.model == model)
            is_new = (newest.c.text_id == newest_text_id(stage)) & (newest.c.created_time >= begun_time)
            chosen = chosen.where(~sa.exists().where(is_new, is_in_use))
        marks = insert_new(connection, recomputations)
        names = ["user_key", "partition_index", "stage", "asked_time"]
        made = marks.from_select(names, chosen).execution_options(preserve_rowcount=True)  # of an insert it is not kept
        count += connection.execute(made).rowcount
    return count


def recomputation_count(connection: sa.Connection) -> int:
    """Return how many texts are to be written anew."""
    return connection.scalar(sa.select(sa.func.count()).select_from(recomputations)) or 0


@cache
def _summaries(whose: Whose, *, with_failed: bool) -> sa.Select[Any]:
    found = _of_stage(SUMMARY, ~has_text(SUMMARY), is_due=_is_due(whose, with_failed=with_failed))
    return sa.select(found).order_by(*found.c)


@cache
def _shifts(whose: Whose, *, with_failed: bool) -> sa.Select[Any]:
    is_due = sa.and_(_is_due(whose, with_failed=with_failed), has_text(SUMMARY), ~is_marked(SUMMARY))
    found = _of_stage(SHIFT, sa.and_(~has_text(SHIFT), partitions.c.partition_index > 0), is_due=is_due)
    previous = sa.select(sa.func.max(texts.c.partition_index)).where(
        texts.c.user_key == found.c.user_key,
        texts.c.partition_index < found.c.partition_index,
        texts.c.stage == SUMMARY,
    )
    return sa.select(found, previous.scalar_subquery().label("previous_partition_index")).order_by(*found.c)


def _is_due(whose: Whose, *, with_failed: bool) -> sa.ColumnElement[bool]:
    is_asked_for = whose(partitions.c.user_key)
    return is_asked_for if with_failed else sa.and_(is_asked_for, partitions.c.failure.is_(None))


def _of_stage(stage: str, is_missing: sa.ColumnElement[bool], *, is_due: sa.ColumnElement[bool]) -> sa.Subquery:
    """Return the partitions whose text of `stage` is missing or to be written anew."""
    key = (partitions.c.user_key, partitions.c.partition_index)
    marked = recomputations.join(
        partitions,
        (recomputations.c.user_key == partitions.c.user_key)
        & (recomputations.c.partition_index == partitions.c.partition_index),
    )
    to_write = sa.select(*key).where(is_missing, is_due)
    to_redo = sa.select(*key).select_from(marked).where(recomputations.c.stage == stage, is_due)
    return sa.union(to_write, to_redo).subquery("missing")
