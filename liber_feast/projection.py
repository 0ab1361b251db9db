"""Rows of the feature views, made from the memory: one table a view, the same for Delta and online.

Nothing here writes. The same memory gives the same rows, whoever asks and when: that is what lets a publication
be repeated and a store be rebuilt. A text's row was created when the text was written; that of a vector or a fused
vector, which may outdate one published before, with the publication, whose `created_time` is kept with it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import CREATED_TIME, EVENT_TIME, ITEM, TIMESTAMP, USER
from liber_feast.evidence import memory_evidence
from liber_feast.fuser import Fuser
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.bulk import among
from liber_feast.memory.evidence import evidence_of_users
from liber_feast.memory.item_vectors import ItemTextRow
from liber_feast.memory.publications import maker_of, text_version
from liber_feast.memory.schema import partitions, texts
from liber_feast.memory.settings import setting
from liber_feast.memory.texts import PartitionKey, known_user_ids, user_chunks
from liber_feast.memory.vectors import PartitionVector, partition_vectors
from liber_feast.sequences import SequenceRows

FUSED = "fused"

_TEXT_FIELDS: dict[str, tuple[tuple[str, pa.DataType], ...]] = {
    SUMMARY: (
        ("partition_index", pa.int64()),
        ("summary", pa.string()),
        ("behavior_count", pa.int64()),
        ("first_time", pa.int64()),
        ("last_time", pa.int64()),
        ("prompt_version", pa.string()),
        ("model", pa.string()),
    ),
    SHIFT: (
        ("partition_index", pa.int64()),
        ("shift", pa.string()),
        ("previous_partition_index", pa.int64()),
        ("prompt_version", pa.string()),
        ("model", pa.string()),
    ),
}
_EVIDENCE_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("partition_index", pa.int64()),
    ("evidence", pa.list_(pa.float32())),
    ("like_rate", pa.float64()),
    ("behavior_count", pa.int64()),
    ("memory_evidence", pa.list_(pa.float32())),
    ("memory_like_rate", pa.float64()),
    ("memory_behavior_count", pa.int64()),
    ("encoder_version", pa.string()),
)
_TIME_FIELDS = ((EVENT_TIME, TIMESTAMP), (CREATED_TIME, TIMESTAMP))


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """One snapshot of the memory, seen as feature rows.

    `vector_version` is None while the PCA is not fitted: there are no vectors then.
    """

    connection: sa.Connection
    fuser: Fuser
    vector_version: str | None
    """The version under which vectors are published now; the encoder made it (`maker_of`)."""
    vector_width: int
    """W: floats per text."""
    memory_window: int
    """M: partitions of a user that are shown and fused."""
    sequence_length: int
    """N: behaviors of a user that are shown."""
    _types: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _names: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What the snapshot was asked for already: types of ids by column, ids by user key."""

    def text_rows(self, stage: str, *, user_keys: Sequence[int], keep: Callable[[PartitionKey, str], bool]) -> pa.Table:
        """Return the texts of a stage that `keep` (of partition and version) keeps, as rows of its view."""
        found: list[dict[str, Any]] = []
        for some in user_chunks(user_keys):
            for row in self.connection.execute(_texts(stage), {"user_keys": some}):
                version = text_version(prompt_version=row.prompt_version, model=row.model, revision=row.revision)
                if keep((row.user_key, row.partition_index), version):
                    found.append({**row._mapping, EVENT_TIME: row.seal_time, CREATED_TIME: row.created_time})
        return self._table(found, _TEXT_FIELDS[stage])

    def newest_text_rows(self, stage: str, *, user_keys: Sequence[int]) -> pa.Table:
        """Return the newest partition's newest text of each user that has one."""
        rows = self.text_rows(stage, user_keys=user_keys, keep=lambda _key, _version: True)
        return _last_of_each(rows)

    def vectors(self, user_keys: Sequence[int], *, version: str | None = None) -> Iterator[PartitionVector]:
        """Yield the partition vectors of the users, by user and index; of another version than the one in use, too."""
        version = version or self.vector_version
        if version is None:
            return iter(())
        return partition_vectors(
            self.connection, user_keys, encoder_version=maker_of(version), version=version, width=self.vector_width
        )

    def vector_rows(self, vectors: Iterable[PartitionVector], *, encoder_version: str, created_time: int) -> pa.Table:
        """Return rows of the Delta table behind `long_term_memory`: one vector a partition."""
        rows = [
            {
                "user_key": one.user_key,
                "partition_index": one.partition_index,
                "vector": one.vector,
                "encoder_version": encoder_version,
                EVENT_TIME: one.seal_time,
                CREATED_TIME: created_time,
            }
            for one in vectors
        ]
        fields = (("partition_index", pa.int64()), ("vector", pa.list_(pa.float32())), ("encoder_version", pa.string()))
        return self._table(rows, fields)

    def memory_rows(self, user_keys: Sequence[int], *, created_time: int) -> pa.Table:
        """Return the newest row of `long_term_memory` of each user that has a vector."""
        rows = [
            {
                "user_key": window[-1].user_key,
                "vectors": np.concatenate([one.vector for one in window]),
                "partition_count": len(window),
                "encoder_version": maker_of(self.vector_version or ""),
                EVENT_TIME: window[-1].seal_time,
                CREATED_TIME: created_time,
            }
            for window in self._newest_windows(user_keys)
        ]
        fields = (
            ("vectors", pa.list_(pa.float32())),
            ("partition_count", pa.int64()),
            ("encoder_version", pa.string()),
        )
        return self._table(rows, fields)

    def fused_rows(self, windows: Sequence[Sequence[PartitionVector]], *, created_time: int) -> pa.Table:
        """Return rows of `fused_vector`: each window of partitions fused into one vector, as of its last one."""
        fused = self.fuser.fuse([np.stack([one.vector for one in window]) for window in windows])
        rows = [
            {
                "user_key": window[-1].user_key,
                "fused": vector,
                "partition_count": len(window),
                "fusion_version": self.fuser.version,
                EVENT_TIME: window[-1].seal_time,
                CREATED_TIME: created_time,
            }
            for window, vector in zip(windows, fused, strict=True)
        ]
        fields = (("fused", pa.list_(pa.float32())), ("partition_count", pa.int64()), ("fusion_version", pa.string()))
        return self._table(rows, fields)

    def newest_fused_rows(self, user_keys: Sequence[int], *, created_time: int) -> pa.Table:
        """Return the newest row of `fused_vector` of each user that has a vector."""
        return self.fused_rows(self._newest_windows(user_keys), created_time=created_time)

    def evidence_rows(
        self,
        user_keys: Sequence[int],
        *,
        encoder_version: str,
        created_time: int,
        keep: Callable[[PartitionKey], bool],
    ) -> pa.Table:
        """Return rows of `partition_evidence` of the partitions that `keep` keeps, by user and index."""
        rows = []
        for user_key, sealed in evidence_of_users(self.connection, user_keys, encoder_version=encoder_version):
            memory = memory_evidence([one.evidence for one in sealed])
            for place, one in enumerate(sealed):
                if not keep((user_key, one.partition_index)):
                    continue
                row = {
                    "user_key": user_key,
                    "partition_index": one.partition_index,
                    "evidence": one.evidence.evidence,
                    "like_rate": one.evidence.like_rate,
                    "behavior_count": one.evidence.behavior_count,
                    "memory_evidence": memory.evidence[place],
                    "memory_like_rate": float(memory.like_rates[place]),
                    "memory_behavior_count": int(memory.behavior_counts[place]),
                    "encoder_version": encoder_version,
                    EVENT_TIME: one.seal_time,
                    CREATED_TIME: created_time,
                }
                rows.append(row)
        return self._table(rows, _EVIDENCE_FIELDS)

    def newest_evidence_rows(self, user_keys: Sequence[int], *, encoder_version: str, created_time: int) -> pa.Table:
        """Return the newest row of `partition_evidence` of each user that has evidence."""
        rows = self.evidence_rows(
            user_keys, encoder_version=encoder_version, created_time=created_time, keep=lambda _key: True
        )
        return _last_of_each(rows)

    def item_rows(self, items: Sequence[ItemTextRow]) -> pa.Table:
        """Return rows of `item_text`."""
        vectors = [np.frombuffer(one.vector, "<f4") for one in items]
        columns = {
            ITEM: _ids([one.item_id for one in items], self._id_type(ITEM)),
            "vector": _column(vectors, pa.list_(pa.float32())),
            "encoder_version": pa.array([one.encoder_version for one in items], pa.string()),
            EVENT_TIME: pa.array([one.event_time for one in items], pa.int64()).cast(TIMESTAMP),
            CREATED_TIME: pa.array([one.created_time for one in items], pa.int64()).cast(TIMESTAMP),
        }
        return pa.table(columns)

    def windows(self, user_keys: Sequence[int]) -> dict[PartitionKey, list[PartitionVector]]:
        """Return, for every partition with a vector, it and those before it, the last M."""
        every = self._windows(user_keys)
        return {(window[-1].user_key, window[-1].partition_index): window for window in every}

    def behavior_rows(self, user_keys: Sequence[int]) -> dict[str, pa.Table]:
        """Return the newest rows of `behaviors` and `behavior_sequence` of each user who has behaviors."""
        return SequenceRows(self.connection, length=self.sequence_length).behavior_rows(user_keys)

    def _newest_windows(self, user_keys: Sequence[int]) -> list[list[PartitionVector]]:
        return list({window[-1].user_key: window for window in self._windows(user_keys)}.values())

    def _windows(self, user_keys: Sequence[int]) -> Iterator[list[PartitionVector]]:
        window: list[PartitionVector] = []
        for one in self.vectors(user_keys):
            if window and window[-1].user_key != one.user_key:
                window = []
            window = [*window, one][-self.memory_window :]
            yield window

    def _table(self, rows: Sequence[dict[str, Any]], fields: Sequence[tuple[str, pa.DataType]]) -> pa.Table:
        keys = [row["user_key"] for row in rows]
        if unknown := sorted(set(keys).difference(self._names)):
            self._names.update(known_user_ids(self.connection, unknown))
        columns = {USER: _ids([self._names[key] for key in keys], self._id_type(USER))}
        for name, kind in fields:
            columns[name] = _column([row[name] for row in rows], kind)
        for name, kind in _TIME_FIELDS:
            columns[name] = pa.array([row[name] for row in rows], pa.int64()).cast(kind)
        return pa.table(columns)

    def knows_ids(self) -> bool:
        """Return whether the memory knows the type of ids: whether a behavior ever came."""
        return self._kept_type(USER) is not None

    def _id_type(self, column: str) -> pa.DataType:
        return pa.int64() if self._kept_type(column) == "int64" else pa.string()

    def _kept_type(self, column: str) -> str | None:
        if column not in self._types:
            self._types[column] = setting(self.connection, f"{column}_type")
        return self._types[column]


@cache
def _texts(stage: str) -> sa.Select[Any]:
    """Return a query of the texts of a stage that users have, beside their partitions."""
    columns = (
        *(texts.c[name] for name in ("user_key", "partition_index", "previous_partition_index", "prompt_version")),
        *(texts.c[name] for name in ("model", "revision", "created_time")),
        texts.c.text.label(stage),
        *(partitions.c[name] for name in ("behavior_count", "first_time", "last_time", "seal_time")),
    )
    is_its = sa.and_(partitions.c.user_key == texts.c.user_key, partitions.c.partition_index == texts.c.partition_index)
    query = sa.select(*columns).select_from(texts.join(partitions, is_its))
    query = query.where(texts.c.stage == stage, among(texts.c.user_key, "user_keys"))
    return query.order_by(texts.c.user_key, texts.c.partition_index, texts.c.text_id)


def _ids(values: Sequence[str], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).cast(kind)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind) and values:
        flat = _flat(values, kind.value_type)
        offsets = np.r_[0, np.cumsum([len(value) for value in values])].astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), flat)
    if values and isinstance(values[0], str):  # the memory keeps integer ids as text, too
        return _ids(values, kind)
    return pa.array(values, kind)


def _flat(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(values[0], np.ndarray):
        joined: npt.NDArray[Any] = np.concatenate(values)
        return pa.array(joined, kind)
    return _column([one for value in values for one in value], kind)


def _last_of_each(rows: pa.Table) -> pa.Table:
    """Return the last row of each run of equal users."""
    if not len(rows):
        return rows
    ids = rows[USER].combine_chunks().dictionary_encode().indices.to_numpy()
    return rows.filter(pa.array(np.r_[ids[1:] != ids[:-1], True]))
