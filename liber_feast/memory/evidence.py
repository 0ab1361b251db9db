"""The evidence of sealed partitions in the memory: what lacks it, what is kept, and what is not published."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import sqlalchemy as sa

from liber_feast.evidence import EVIDENCE, PartitionEvidence
from liber_feast.memory.bulk import QUERIES_KEPT, insert_new, plain_rows
from liber_feast.memory.evidence_tables import partition_evidence
from liber_feast.memory.publications import PublishedRow, Rows
from liber_feast.memory.schema import partitions, published
from liber_feast.memory.texts import PartitionKey, Whose, of_users


def partitions_without_evidence(
    connection: sa.Connection, encoder_version: str, *, user_keys: Sequence[int] | None = None
) -> list[PartitionKey]:
    """Return the sealed partitions that have no evidence of the encoder, by user and index; of all users or of some."""
    rows = of_users(connection, lambda whose: _missing(whose, encoder_version), user_keys)
    return [(row.user_key, row.partition_index) for row in rows]


def add_evidence(
    connection: sa.Connection, found: Mapping[PartitionKey, PartitionEvidence], *, encoder_version: str
) -> None:
    """Keep evidence; what another run kept first stays, that of a user who was forgotten meanwhile vanishes.

    Of each user these are the oldest partitions that have none.
    """
    rows = [
        {
            "of_user": user_key,
            "of_index": index,
            "of_version": encoder_version,
            "likes": one.like_count,
            "behaviors": one.behavior_count,
            "summed": one.signed_sum.astype("<f8").tobytes(),
        }
        for (user_key, index), one in found.items()
    ]
    if rows:
        connection.execute(insert_new(connection, partition_evidence).from_select(_NAMES, _ROW), rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedEvidence:
    """The evidence of a sealed partition."""

    partition_index: int
    seal_time: int
    evidence: PartitionEvidence


def evidence_of_users(
    connection: sa.Connection, user_keys: Sequence[int], *, encoder_version: str
) -> Iterator[tuple[int, list[SealedEvidence]]]:
    """Yield each user who has evidence, and that of all partitions in the order of their indexes."""
    rows = of_users(connection, lambda whose: _evidence(whose, encoder_version), user_keys)
    for user_key, some in groupby(rows, key=lambda row: int(row.user_key)):
        yield (
            user_key,
            [
                SealedEvidence(
                    partition_index=row.partition_index,
                    seal_time=row.seal_time,
                    evidence=PartitionEvidence(
                        behavior_count=row.behavior_count,
                        like_count=row.like_count,
                        signed_sum=np.frombuffer(row.signed_sum, "<f8"),
                    ),
                )
                for row in some
            ],
        )


def unpublished_evidence(
    connection: sa.Connection, encoder_version: str, *, user_keys: Sequence[int] | None = None
) -> list[PublishedRow]:
    """Return the partitions whose evidence no publication holds, of all users or of some."""
    rows = of_users(connection, lambda whose: _unpublished(whose, encoder_version), user_keys)
    return [
        PublishedRow(user_key=row.user_key, partition_index=row.partition_index, version=encoder_version, text_id=None)
        for row in rows
    ]


def evidence_counts(connection: sa.Connection) -> dict[str, int]:
    """Return the number of partitions with evidence by encoder version."""
    version = partition_evidence.c.encoder_version
    query = sa.select(version, sa.func.count()).group_by(version).order_by(version)
    return {name: count for name, count in plain_rows(connection, query, {})}


_KEY = (partition_evidence.c.user_key, partition_evidence.c.partition_index)
_NAMES = ["user_key", "partition_index", "encoder_version", "like_count", "behavior_count", "signed_sum"]
_ROW = (
    sa.select(
        partitions.c.user_key,
        partitions.c.partition_index,
        sa.bindparam("of_version", type_=sa.Text),
        sa.bindparam("likes", type_=sa.Integer),
        sa.bindparam("behaviors", type_=sa.Integer),
        sa.bindparam("summed", type_=sa.LargeBinary),
    )
    .where(partitions.c.user_key == sa.bindparam("of_user"), partitions.c.partition_index == sa.bindparam("of_index"))
    .with_for_update(read=True, key_share=True)  # whoever deletes the partition waits, or it is seen that it is gone
)
"""The evidence of a partition, where that is there."""


@lru_cache(maxsize=QUERIES_KEPT)
def _missing(whose: Whose, encoder_version: str) -> sa.Select[Any]:
    is_its = sa.and_(
        _KEY[0] == partitions.c.user_key,
        _KEY[1] == partitions.c.partition_index,
        partition_evidence.c.encoder_version == encoder_version,
    )
    key = (partitions.c.user_key, partitions.c.partition_index)
    query = sa.select(*key).select_from(partitions.outerjoin(partition_evidence, is_its))
    return query.where(_KEY[0].is_(None), whose(partitions.c.user_key)).order_by(*key)


@lru_cache(maxsize=QUERIES_KEPT)
def _evidence(whose: Whose, encoder_version: str) -> sa.Select[Any]:
    columns = (partition_evidence.c[name] for name in ("like_count", "behavior_count", "signed_sum"))
    is_its = (_KEY[0] == partitions.c.user_key) & (_KEY[1] == partitions.c.partition_index)
    query = sa.select(*_KEY, partitions.c.seal_time, *columns).select_from(partition_evidence.join(partitions, is_its))
    return query.where(partition_evidence.c.encoder_version == encoder_version, whose(_KEY[0])).order_by(*_KEY)


@lru_cache(maxsize=QUERIES_KEPT)
def _unpublished(whose: Whose, encoder_version: str) -> sa.Select[Any]:
    rows = Rows(stage=EVIDENCE, version=encoder_version)
    joined = partition_evidence.outerjoin(published, rows.held(partition_evidence, published))
    query = sa.select(*_KEY).select_from(joined)
    is_due = (partition_evidence.c.encoder_version == encoder_version) & published.c.publication_id.is_(None)
    return query.where(is_due, whose(_KEY[0])).order_by(*_KEY)
