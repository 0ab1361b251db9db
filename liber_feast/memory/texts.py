"""Read what the interest stage and the encoder have to do, and keep what they did."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from liber_feast.interest import LearnedText
from liber_feast.memory.bulk import insert_new, join_pairs
from liber_feast.memory.schema import behaviors, partitions, text_vectors, texts, users

SUMMARY, SHIFT = "summary", "shift"
ROWS_PER_QUERY = 400

_T = TypeVar("_T")

PartitionKey: TypeAlias = tuple[int, int]
"""(user_key, partition_index)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedPartition:
    """A sealed partition without its behaviors."""

    user_key: int
    user_id: str
    partition_index: int
    partition_hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedBehavior:
    """One behavior of a sealed partition; `event_time` in microseconds."""

    item_id: str
    rating: float
    event_time: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingShift:
    """A partition whose shift is missing, beside the summaries that it is made from."""

    partition: SealedPartition
    previous_partition_index: int
    previous_summary: str
    summary: str


def missing_summaries(connection: sa.Connection, *, user_keys: Sequence[int] | None = None) -> list[SealedPartition]:
    """Return the sealed partitions without a summary of any version, of all users or of some."""
    without = _sealed_partitions().where(~has_text(SUMMARY))
    return [_sealed(row) for row in of_users(connection, without, partitions.c.user_key, user_keys)]


def missing_shifts(connection: sa.Connection, *, user_keys: Sequence[int] | None = None) -> list[MissingShift]:
    """Return the partitions with a summary and no shift that have an earlier summary, of all users or of some."""
    without = _sealed_partitions().where(partitions.c.partition_index > 0, has_text(SUMMARY), ~has_text(SHIFT))
    waiting = [_sealed(row) for row in of_users(connection, without, partitions.c.user_key, user_keys)]
    summaries = newest_texts(connection, SUMMARY, user_keys=sorted({one.user_key for one in waiting}))
    indexes: dict[int, list[int]] = {}
    for user_key, index in sorted(summaries):
        indexes.setdefault(user_key, []).append(index)
    found = []
    for one in waiting:
        earlier = [index for index in indexes[one.user_key] if index < one.partition_index]
        if earlier:
            found.append(
                MissingShift(
                    partition=one,
                    previous_partition_index=earlier[-1],
                    previous_summary=summaries[one.user_key, earlier[-1]],
                    summary=summaries[one.user_key, one.partition_index],
                )
            )
    return found


def newest_texts(connection: sa.Connection, stage: str, *, user_keys: Sequence[int]) -> dict[PartitionKey, str]:
    """Return the newest text of `stage` of every partition of the users that has one."""
    found: dict[PartitionKey, str] = {}
    for some in user_chunks(user_keys):
        query = (
            sa.select(texts.c.user_key, texts.c.partition_index, texts.c.text)
            .where(texts.c.stage == stage, texts.c.user_key.in_(some))
            .order_by(texts.c.text_id)
        )
        found |= {(row.user_key, row.partition_index): row.text for row in connection.execute(query)}
    return found


def sealed_behaviors(
    connection: sa.Connection, keys: Iterable[PartitionKey]
) -> dict[PartitionKey, tuple[SealedBehavior, ...]]:
    """Return the behaviors of the partitions, each in the order (event time, behavior id)."""
    wanted: dict[PartitionKey, list[SealedBehavior]] = {key: [] for key in keys}
    query = (
        sa.select(
            behaviors.c.user_key,
            behaviors.c.partition_index,
            behaviors.c.item_id,
            behaviors.c.rating,
            behaviors.c.event_time,
        )
        .select_from(join_pairs(behaviors, list(wanted), on=(behaviors.c.user_key, behaviors.c.partition_index)))
        .order_by(behaviors.c.user_key, behaviors.c.event_time, behaviors.c.behavior_id)
    )
    for user_key, index, item_id, rating, event_time in connection.execute(query):
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


def add_text(connection: sa.Connection, new: NewText) -> None:
    """Keep one answer of the learner under the key (user, index, hash, prompt version, model).

    Where two runs asked for the same text at once, the answer that came first stays.
    """
    connection.execute(
        insert_new(connection, texts).values(
            user_key=new.partition.user_key,
            partition_index=new.partition.partition_index,
            stage=new.stage,
            partition_hash=new.partition.partition_hash,
            prompt_version=new.prompt_version,
            model=new.model,
            previous_partition_index=new.previous_partition_index,
            text=new.learned.text,
            text_hash=text_hash(new.learned.text),
            input_tokens=new.learned.input_tokens,
            output_tokens=new.learned.output_tokens,
            cached_tokens=new.learned.cached_tokens,
            seconds=new.learned.seconds,
            created_time=new.created_time,
        )
    )


def text_hash(text: str) -> str:
    """Return what equal texts share."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def distinct_texts(connection: sa.Connection) -> dict[str, str]:
    """Return every text once, by its hash, in the order of the hashes."""
    found = connection.execute(sa.select(texts.c.text_hash, texts.c.text).distinct().order_by(texts.c.text_hash))
    return {row.text_hash: row.text for row in found}


def distinct_text_count(connection: sa.Connection) -> int:
    """Return the number of different texts."""
    return connection.scalar(sa.select(sa.func.count(texts.c.text_hash.distinct()))) or 0


def texts_without_vector(
    connection: sa.Connection, encoder_version: str, *, user_keys: Sequence[int] | None = None
) -> dict[str, tuple[str, list[int]]]:
    """Return, by text hash, each text the encoder has not seen and the ids of the rows that wait for it.

    Of all users or of some.
    """
    encoded = sa.exists().where(
        text_vectors.c.text_id == texts.c.text_id, text_vectors.c.encoder_version == encoder_version
    )
    found: dict[str, tuple[str, list[int]]] = {}
    waiting = sa.select(texts.c.text_id, texts.c.text_hash, texts.c.text).where(~encoded)
    for row in of_users(connection, waiting, texts.c.user_key, user_keys):
        found.setdefault(row.text_hash, (row.text, []))[1].append(row.text_id)
    return found


def known_vectors(connection: sa.Connection, hashes: Sequence[str], *, encoder_version: str) -> dict[str, bytes]:
    """Return, by text hash, the vectors of texts that were encoded for another row."""
    found: dict[str, bytes] = {}
    joined = texts.join(text_vectors, text_vectors.c.text_id == texts.c.text_id)
    for some in user_chunks(hashes):
        query = (
            sa.select(texts.c.text_hash, text_vectors.c.vector)
            .select_from(joined)
            .where(texts.c.text_hash.in_(some), text_vectors.c.encoder_version == encoder_version)
        )
        found |= {row.text_hash: row.vector for row in connection.execute(query)}
    return found


def add_vectors(connection: sa.Connection, vectors: Mapping[int, bytes], *, encoder_version: str) -> None:
    """Keep the vector of each text id; one that another run kept first stays."""
    if vectors:
        rows = [
            {"text_id": key, "encoder_version": encoder_version, "vector": vector} for key, vector in vectors.items()
        ]
        connection.execute(insert_new(connection, text_vectors), rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionVector:
    """r_j of equation 4: the encoded summary beside the encoded shift (zeros where there is none)."""

    user_key: int
    partition_index: int
    seal_time: int
    created_time: int
    """When the later of the two texts was written, microseconds."""
    vector: npt.NDArray[np.float32]


def partition_vectors(
    connection: sa.Connection, user_keys: Sequence[int], *, encoder_version: str, width: int
) -> Iterator[PartitionVector]:
    """Yield the vectors of the users' partitions whose texts are complete and encoded, by user and index.

    A partition waits for its shift, and for the vector of each text, as long as there is an earlier summary to make
    the shift from.
    """
    zeros = np.zeros(width, np.float32)
    for some in user_chunks(user_keys):
        stages = _newest_vectors(connection, some, encoder_version=encoder_version)
        seals = _seal_times(connection, some)
        with_summary: set[int] = set()
        for (user_key, index), found in sorted(stages.items()):
            if SUMMARY not in found:
                continue
            is_first = user_key not in with_summary
            with_summary.add(user_key)
            due = (SUMMARY,) if is_first and SHIFT not in found else (SUMMARY, SHIFT)
            vectors = [found[stage][1] for stage in due if stage in found]
            if len(vectors) < len(due) or None in vectors:
                continue
            halves = [np.frombuffer(vector, "<f4") for vector in vectors if vector is not None]
            yield PartitionVector(
                user_key=user_key,
                partition_index=index,
                seal_time=seals[user_key, index],
                created_time=max(created for created, _ in found.values()),
                vector=np.concatenate([*halves, zeros][:2]),
            )


def _newest_vectors(
    connection: sa.Connection, user_keys: Sequence[int], *, encoder_version: str
) -> dict[PartitionKey, dict[str, tuple[int, bytes | None]]]:
    """Return, by partition and stage, when the newest text was written and its vector (None: not encoded)."""
    vectors = (text_vectors.c.text_id == texts.c.text_id) & (text_vectors.c.encoder_version == encoder_version)
    query = (
        sa.select(texts.c.user_key, texts.c.partition_index, texts.c.stage, texts.c.created_time, text_vectors.c.vector)
        .select_from(texts.outerjoin(text_vectors, vectors))
        .where(texts.c.user_key.in_(user_keys))
        .order_by(texts.c.user_key, texts.c.partition_index, texts.c.text_id)
    )
    found: dict[PartitionKey, dict[str, tuple[int, bytes | None]]] = {}
    for user_key, index, stage, created_time, vector in connection.execute(query):
        found.setdefault((user_key, index), {})[stage] = (created_time, vector)
    return found


def _seal_times(connection: sa.Connection, user_keys: Sequence[int]) -> dict[PartitionKey, int]:
    query = sa.select(partitions.c.user_key, partitions.c.partition_index, partitions.c.seal_time)
    rows = connection.execute(query.where(partitions.c.user_key.in_(user_keys)))
    return {(row.user_key, row.partition_index): row.seal_time for row in rows}


def _sealed_partitions() -> sa.Select[tuple[int, str, int, str]]:
    return (
        sa.select(partitions.c.user_key, users.c.user_id, partitions.c.partition_index, partitions.c.partition_hash)
        .join(users, users.c.user_key == partitions.c.user_key)
        .order_by(partitions.c.user_key, partitions.c.partition_index)
    )


def has_text(stage: str) -> sa.Exists:
    """Return whether a partition has a text of `stage`, of any version."""
    return sa.exists().where(
        texts.c.user_key == partitions.c.user_key,
        texts.c.partition_index == partitions.c.partition_index,
        texts.c.stage == stage,
    )


def _sealed(row: sa.Row[tuple[int, str, int, str]]) -> SealedPartition:
    return SealedPartition(
        user_key=row.user_key,
        user_id=row.user_id,
        partition_index=row.partition_index,
        partition_hash=row.partition_hash,
    )


def user_chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Yield `values` in pieces that a query takes as its parameters."""
    for start in range(0, len(values), ROWS_PER_QUERY):
        yield values[start : start + ROWS_PER_QUERY]


def of_users(
    connection: sa.Connection,
    query: sa.Select[Any],
    user_key: sa.ColumnElement[int],
    user_keys: Sequence[int] | None,
) -> Iterator[sa.Row[Any]]:
    """Yield the rows of `query`, of all users (None) or of some."""
    if user_keys is None:
        yield from connection.execute(query)
        return
    for some in user_chunks(user_keys):
        yield from connection.execute(query.where(user_key.in_(some)))


def known_user_ids(connection: sa.Connection, user_keys: Sequence[int]) -> dict[int, str]:
    """Return the ids of users by key, as text."""
    query = sa.select(users.c.user_key, users.c.user_id)
    return {row.user_key: row.user_id for row in of_users(connection, query, users.c.user_key, user_keys)}
