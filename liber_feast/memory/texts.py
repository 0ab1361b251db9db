"""Texts and the partitions they belong to: what a learner is shown, and what is kept of its answers."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa

from liber_feast.interest import SUMMARY, Failure, LearnedText
from liber_feast.memory.bulk import among, insert_new, join_pairs, pair_parameters, plain_rows
from liber_feast.memory.schema import behaviors, partitions, recomputations, texts, users

ROWS_PER_QUERY = 400

_T = TypeVar("_T")

PartitionKey: TypeAlias = tuple[int, int]
"""(user_key, partition_index)"""

Whose: TypeAlias = Callable[[sa.ColumnElement[int]], sa.ColumnElement[bool]]
"""Says of a user key whether it is of one of the users in question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedPartition:
    """A sealed partition without its behaviors."""

    user_key: int
    user_id: str
    partition_index: int
    partition_hash: str
    revision: int
    """Of the text that it waits for: 0 for the first of its stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedBehavior:
    """One behavior of a sealed partition; `event_time` in microseconds."""

    item_id: str
    rating: float
    event_time: int


def sealed_partitions(
    connection: sa.Connection, keys: Sequence[PartitionKey], *, stage: str
) -> dict[PartitionKey, SealedPartition]:
    """Return those partitions that wait for a text of `stage`, as they wait; another run may have kept some since."""
    rows = connection.execute(_sealed(stage), pair_parameters(keys))
    return {(row.user_key, row.partition_index): SealedPartition(**row._mapping) for row in rows}


def newest_texts(connection: sa.Connection, keys: Sequence[PartitionKey], *, stage: str) -> dict[PartitionKey, str]:
    """Return the newest text of `stage` of every partition of `keys` that has one."""
    rows = connection.execute(_NEWEST, {**pair_parameters(keys), "of_stage": stage})
    return {(row.user_key, row.partition_index): row.text for row in rows}


def sealed_behaviors(
    connection: sa.Connection, keys: Iterable[PartitionKey]
) -> dict[PartitionKey, tuple[SealedBehavior, ...]]:
    """Return the behaviors of the partitions, each in the order (event time, behavior id)."""
    wanted: dict[PartitionKey, list[SealedBehavior]] = {key: [] for key in keys}
    for user_key, index, item_id, rating, event_time in plain_rows(
        connection, _BEHAVIORS, pair_parameters(list(wanted))
    ):
        wanted[user_key, index].append(SealedBehavior(item_id=item_id, rating=rating, event_time=event_time))
    return {key: tuple(found) for key, found in wanted.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class NewText:
    """One answer of the learner and where it belongs."""

    partition: SealedPartition
    stage: str
    learned: LearnedText
    prompt_version: str
    model: str
    created_time: int
    previous_partition_index: int | None = None


def add_texts(connection: sa.Connection, new: Sequence[NewText]) -> None:
    """Keep answers of the learner, each under (partition, stage, partition hash, prompt version, model, revision).

    A partition with a new text has not failed, and what was to be written anew is. Where two runs asked for the same
    text at once, the answer that came first stays. Answers about a user who was forgotten meanwhile vanish.
    """
    if not new:
        return
    rows = [_asked_for(one.partition, stage=one.stage, attempt_count=one.learned.attempt_count) for one in new]
    connection.execute(_UNMARK, rows)  # first: a mark that is there after such a text was kept asks for the next one
    values = [_row(one) for one in new]
    connection.execute(_add(insert_new(connection, texts), tuple(values[0])), values)
    connection.execute(_SUCCEED, rows)


@cache
def _add(insert: sa.Insert, names: tuple[str, ...]) -> sa.Insert:
    """Return an insert of the columns `names` that inserts nothing where their partition is not there."""
    of_partition = sa.and_(
        *(partitions.c[name] == sa.bindparam(name) for name in ("user_key", "partition_index", "partition_hash"))
    )
    columns = [sa.bindparam(name, type_=texts.c[name].type) for name in names]
    there = sa.select(*columns).where(of_partition).select_from(partitions)
    kept = there.with_for_update(read=True, key_share=True)  # whoever deletes it waits, or it is seen that it is gone
    return insert.from_select(list(names), kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedText:
    """A text that could not be had."""

    partition: SealedPartition
    stage: str
    failure: Failure


def keep_failures(connection: sa.Connection, failed: Sequence[FailedText]) -> None:
    """Mark partitions failed, each with the reason; one whose text another run kept meanwhile has not failed."""
    rows = [
        {
            **_asked_for(one.partition, stage=one.stage, attempt_count=one.failure.attempt_count),
            "reason": one.failure.reason,
        }
        for one in failed
    ]
    if rows:
        connection.execute(_FAIL, rows)


def text_hash(text: str) -> str:
    """Return what equal texts share."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def has_text(stage: str) -> sa.Exists:
    """Return whether a partition has a text of `stage`, of any version."""
    return sa.exists().where(_of_partition(texts, stage))


def newest_text_id(stage: str) -> sa.ScalarSelect[int]:
    """Return a partition's newest text of `stage`, or null."""
    newest = sa.select(sa.func.max(texts.c.text_id)).where(_of_partition(texts, stage))
    return newest.correlate(partitions).scalar_subquery()


def is_marked(stage: str) -> sa.Exists:
    """Return whether a partition's text of `stage` is to be written anew."""
    return sa.exists().where(_of_partition(recomputations.alias("marked"), stage))


def has_summary_before(
    user_key: sa.ColumnElement[int] = partitions.c.user_key,
    partition_index: sa.ColumnElement[int] = partitions.c.partition_index,
) -> sa.Exists:
    """Return whether an earlier partition of the user has a summary: what a shift could be made from."""
    earlier = texts.alias("earlier")
    return sa.exists().where(
        earlier.c.user_key == user_key, earlier.c.partition_index < partition_index, earlier.c.stage == SUMMARY
    )


def user_chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Yield `values` in pieces, of which the rows are read at once."""
    for start in range(0, len(values), ROWS_PER_QUERY):
        yield values[start : start + ROWS_PER_QUERY]


def of_users(
    connection: sa.Connection, query: Callable[[Whose], sa.Select[Any]], user_keys: Sequence[int] | None
) -> Iterator[sa.Row[Any]]:
    """Yield the rows of `query`, of all users (None) or of some."""
    if user_keys is None:
        yield from connection.execute(query(_anybody))
        return
    for some in user_chunks(user_keys):
        yield from connection.execute(query(_one_of_some), {"some_users": some})


def _anybody(_user_key: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    return sa.true()


def _one_of_some(user_key: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    return among(user_key, "some_users")


def known_user_ids(connection: sa.Connection, user_keys: Sequence[int]) -> dict[int, str]:
    """Return the ids of users by key, as text."""
    return {key: user_id for key, user_id in connection.execute(_USER_IDS, {"user_keys": user_keys})}


_USER_IDS = sa.select(users.c.user_key, users.c.user_id).where(among(users.c.user_key, "user_keys"))


def _row(new: NewText) -> dict[str, Any]:
    learned = new.learned
    return {
        "user_key": new.partition.user_key,
        "partition_index": new.partition.partition_index,
        "stage": new.stage,
        "partition_hash": new.partition.partition_hash,
        "prompt_version": new.prompt_version,
        "model": new.model,
        "previous_partition_index": new.previous_partition_index,
        "text": learned.text,
        "text_hash": text_hash(learned.text),
        "input_tokens": learned.input_tokens,
        "output_tokens": learned.output_tokens,
        "cached_tokens": learned.cached_tokens,
        "seconds": learned.seconds,
        "created_time": new.created_time,
        "revision": new.partition.revision,
    }


def _asked_for(partition: SealedPartition, *, stage: str, attempt_count: int) -> dict[str, Any]:
    """Return the parameters of the statements below."""
    return {
        "of_user": partition.user_key,
        "of_index": partition.partition_index,
        "of_hash": partition.partition_hash,
        "of_stage": stage,
        "of_revision": partition.revision,
        "more": attempt_count,
    }


def _of_partition(table: sa.FromClause, stage: str | sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.user_key == partitions.c.user_key,
        table.c.partition_index == partitions.c.partition_index,
        table.c.stage == stage,
    )


def _asked(table: sa.Table) -> sa.ColumnElement[bool]:
    """Return whether a row is of the partition that the parameters `of_user` and `of_index` name."""
    return (table.c.user_key == sa.bindparam("of_user")) & (table.c.partition_index == sa.bindparam("of_index"))


_IN_PARTITIONS = join_pairs(partitions, on=(partitions.c.user_key, partitions.c.partition_index))
_NEWEST = (
    sa.select(texts.c.user_key, texts.c.partition_index, texts.c.text)
    .select_from(join_pairs(texts, on=(texts.c.user_key, texts.c.partition_index)))
    .where(texts.c.stage == sa.bindparam("of_stage"))
    .order_by(texts.c.text_id)
)
_IS_IN_PARTITION = sa.and_(
    behaviors.c.user_key == partitions.c.user_key,
    behaviors.c.event_time.between(partitions.c.first_time, partitions.c.last_time),  # there is an index
    behaviors.c.partition_index == partitions.c.partition_index,
)
_BEHAVIORS = (
    sa.select(*(behaviors.c[name] for name in ("user_key", "partition_index", "item_id", "rating", "event_time")))
    .select_from(_IN_PARTITIONS.join(behaviors, _IS_IN_PARTITION))
    .order_by(behaviors.c.user_key, behaviors.c.event_time, behaviors.c.behavior_id)
)


@cache
def _sealed(stage: str) -> sa.Select[Any]:
    revision = sa.select(sa.func.coalesce(sa.func.max(texts.c.revision) + 1, 0)).where(_of_partition(texts, stage))
    columns = (*(partitions.c[name] for name in ("user_key", "partition_index", "partition_hash")), users.c.user_id)
    query = sa.select(*columns, revision.scalar_subquery().label("revision")).select_from(
        _IN_PARTITIONS.join(users, users.c.user_key == partitions.c.user_key)
    )
    return query.where(~has_text(stage) | is_marked(stage))


_IS_KEPT = sa.exists().where(
    _asked(texts), texts.c.stage == sa.bindparam("of_stage"), texts.c.revision >= sa.bindparam("of_revision")
)
_UNMARK = recomputations.delete().where(
    _asked(recomputations), recomputations.c.stage == sa.bindparam("of_stage"), ~_IS_KEPT
)
_TRIED = partitions.c.attempts + sa.bindparam("more")
_IS_AS_ASKED = _asked(partitions) & (partitions.c.partition_hash == sa.bindparam("of_hash"))
_SUCCEED = partitions.update().where(_IS_AS_ASKED).values(attempts=_TRIED, failure=sa.null())
_FAILURE = sa.case((_IS_KEPT, partitions.c.failure), else_=sa.bindparam("reason", type_=sa.Text))
_FAIL = partitions.update().where(_IS_AS_ASKED).values(attempts=_TRIED, failure=_FAILURE)
