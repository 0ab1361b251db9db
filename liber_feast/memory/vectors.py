"""The vectors of texts, and of the partitions that have all of theirs.

A partition is ready once its summary is encoded, and its shift where one is due: where an earlier partition has a
summary, unless the shift failed. One whose shift failed has zeros in its place until a later run brings it. One whose
vector was published stays ready: where its shift is due only now, it has zeros until that is encoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.bulk import QUERIES_KEPT, among, insert_new
from liber_feast.memory.schema import partitions, published, text_vectors, texts
from liber_feast.memory.texts import Whose, has_summary_before, of_users
from liber_feast.parts import PARTS, PARTS_SUFFIX, PLAIN, form_of

VECTOR = "vector"
"""The stage of partition vectors, beside those of texts."""


def distinct_texts(connection: sa.Connection, *, form: str = PLAIN) -> dict[str, str]:
    """Return every text of a form once, by its hash, in the order of the hashes."""
    query = sa.select(texts.c.text_hash, texts.c.text).where(_has_form(form))
    found = connection.execute(query.distinct().order_by(texts.c.text_hash))
    return {row.text_hash: row.text for row in found}


def distinct_text_count(connection: sa.Connection, *, form: str = PLAIN) -> int:
    """Return the number of different texts of a form."""
    return connection.scalar(sa.select(sa.func.count(texts.c.text_hash.distinct())).where(_has_form(form))) or 0


def texts_without_vector(
    connection: sa.Connection, encoder_version: str, *, user_keys: Sequence[int] | None = None
) -> dict[str, tuple[str, list[int]]]:
    """Return, by text hash, each text the encoder has not seen and the ids of the rows that wait for it.

    Of all users or of some; an encoder of parts sees texts in parts alone, and another one plain text alone.
    """
    found: dict[str, tuple[str, list[int]]] = {}
    for row in of_users(connection, lambda whose: _texts_without_vector(whose, encoder_version), user_keys):
        found.setdefault(row.text_hash, (row.text, []))[1].append(row.text_id)
    return found


def known_vectors(connection: sa.Connection, hashes: Sequence[str], *, encoder_version: str) -> dict[str, bytes]:
    """Return, by text hash, the vectors of texts that were encoded for another row."""
    found = connection.execute(_KNOWN, {"hashes": hashes, "encoder_version": encoder_version})
    return {row.text_hash: row.vector for row in found}


def add_vectors(connection: sa.Connection, vectors: Mapping[int, bytes], *, encoder_version: str) -> None:
    """Keep the vector of each text id; one that another run kept first stays, that of a text that is gone vanishes."""
    if vectors:
        rows = [
            {"of_text": key, "encoder_version": encoder_version, "vector": vector} for key, vector in vectors.items()
        ]
        names = ["text_id", "encoder_version", "vector"]
        connection.execute(insert_new(connection, text_vectors).from_select(names, _VECTOR), rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionVector:
    """r_j of equation 4: the encoded summary beside the encoded shift (zeros where there is none)."""

    user_key: int
    partition_index: int
    seal_time: int
    text_id: int
    """The later of the two texts."""
    vector: npt.NDArray[np.float32]


def partition_vectors(
    connection: sa.Connection, user_keys: Sequence[int], *, encoder_version: str, version: str, width: int
) -> Iterator[PartitionVector]:
    """Yield the vectors of the users' partitions that are ready, by user and index.

    `version` is the one under which vectors of the encoder are published.
    """
    zeros = np.zeros(width, np.float32)

    def query(whose: Whose) -> sa.Select[Any]:
        return _vectors(whose, encoder_version=encoder_version, version=version)

    for row in of_users(connection, query, user_keys):
        halves = [np.frombuffer(vector, "<f4") for vector in (row.summary, row.shift) if vector is not None]
        yield PartitionVector(
            user_key=row.user_key,
            partition_index=row.partition_index,
            seal_time=row.seal_time,
            text_id=row.text_id,
            vector=np.concatenate([*halves, zeros][:2]),
        )


def ready_partitions(whose: Whose, *, encoder_version: str, version: str) -> sa.CTE:
    """Return the partitions that are ready, each with the ids of its newest summary, shift (or null) and text.

    A text that is not encoded does not count. `version` is that of the published vectors.
    """
    is_encoded = (text_vectors.c.text_id == texts.c.text_id) & (text_vectors.c.encoder_version == encoder_version)
    ids = {stage: sa.func.max(sa.case((texts.c.stage == stage, texts.c.text_id))) for stage in (SUMMARY, SHIFT)}
    newest = (
        sa.select(
            texts.c.user_key,
            texts.c.partition_index,
            ids[SUMMARY].label("summary_id"),
            ids[SHIFT].label("shift_id"),
            sa.func.max(texts.c.text_id).label("text_id"),
        )
        .select_from(texts.join(text_vectors, is_encoded))
        .where(whose(texts.c.user_key))
        .group_by(texts.c.user_key, texts.c.partition_index)
        .cte("newest")
    )
    has_failed = sa.exists().where(
        partitions.c.user_key == newest.c.user_key,
        partitions.c.partition_index == newest.c.partition_index,
        partitions.c.failure.is_not(None),
    )
    was_published = sa.exists().where(
        published.c.stage == VECTOR,
        published.c.version == version,
        published.c.user_key == newest.c.user_key,
        published.c.partition_index == newest.c.partition_index,
    )
    has_none_before = ~has_summary_before(newest.c.user_key, newest.c.partition_index)
    has_shift = newest.c.shift_id.is_not(None) | has_none_before | has_failed | was_published
    return sa.select(newest).where(newest.c.summary_id.is_not(None), has_shift).cte("ready")


@lru_cache(maxsize=QUERIES_KEPT)
def _vectors(whose: Whose, *, encoder_version: str, version: str) -> sa.Select[Any]:
    ready = ready_partitions(whose, encoder_version=encoder_version, version=version)
    of_partition = sa.and_(
        partitions.c.user_key == ready.c.user_key, partitions.c.partition_index == ready.c.partition_index
    )
    joined, columns = ready.join(partitions, of_partition), []
    for stage in (SUMMARY, SHIFT):
        vector = text_vectors.alias(f"{stage}_vector")
        is_its_own = (vector.c.text_id == ready.c[f"{stage}_id"]) & (vector.c.encoder_version == encoder_version)
        joined = joined.outerjoin(vector, is_its_own)
        columns.append(vector.c.vector.label(stage))
    key = (ready.c.user_key, ready.c.partition_index)
    return sa.select(*key, ready.c.text_id, partitions.c.seal_time, *columns).select_from(joined).order_by(*key)


@lru_cache(maxsize=QUERIES_KEPT)
def _texts_without_vector(whose: Whose, encoder_version: str) -> sa.Select[Any]:
    columns = sa.select(texts.c.text_id, texts.c.text_hash, texts.c.text)
    has_form = _has_form(form_of(encoder_version))
    return columns.where(~_is_encoded(texts.c.text_id, encoder_version), whose(texts.c.user_key), has_form)


def _has_form(form: str) -> sa.ColumnElement[bool]:
    is_parts = texts.c.prompt_version.endswith(PARTS_SUFFIX)
    return is_parts if form == PARTS else ~is_parts


def _is_encoded(text_id: sa.ColumnElement[int], encoder_version: str) -> sa.Exists:
    return sa.exists().where(text_vectors.c.text_id == text_id, text_vectors.c.encoder_version == encoder_version)


_KNOWN = (
    sa.select(texts.c.text_hash, text_vectors.c.vector)
    .select_from(texts.join(text_vectors, text_vectors.c.text_id == texts.c.text_id))
    .where(among(texts.c.text_hash, "hashes"), text_vectors.c.encoder_version == sa.bindparam("encoder_version"))
)
_VECTOR = (
    sa.select(
        texts.c.text_id,
        sa.bindparam("encoder_version", type_=sa.Text).label("encoder_version"),
        sa.bindparam("vector", type_=sa.LargeBinary).label("vector"),
    )
    .where(texts.c.text_id == sa.bindparam("of_text"))
    .with_for_update(read=True, key_share=True)  # whoever deletes the text waits, or it is seen that it is gone
)
"""The vector of a text, where that is there."""
