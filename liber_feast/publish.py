"""Publish what the memory holds: Delta tables for training, the online store for serving.

Both are projections of the memory, written at least once into idempotent sinks: a Delta commit carries the
publication's number and is skipped when the table has seen it; an online row is always the user's newest row
of the memory, read and written under one lock, so that an older one never replaces it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import sqlalchemy as sa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from liber_feast.fuser import Fuser
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory import Memory
from liber_feast.memory.publications import (
    Publication,
    PublishedRow,
    Rows,
    finish,
    forget_stage,
    maker_of,
    next_to_restore,
    next_unfinished,
    plan,
    unpublished_texts,
    unpublished_vectors,
    unpublished_windows,
    users_to_check,
    version_in_use,
)
from liber_feast.memory.texts import PartitionKey, user_chunks
from liber_feast.memory.vectors import VECTOR, PartitionVector
from liber_feast.projection import FUSED, Projection
from liber_feast.sequences import publish_sequences

VIEWS: Mapping[str, str] = {
    SUMMARY: "partition_summary",
    SHIFT: "partition_shift",
    VECTOR: "long_term_memory",
    FUSED: "fused_vector",
}
"""The feature view that each stage fills, in the order of publishing."""
USERS_PER_WRITE = 1_000
"""Users whose online rows are written in one transaction, where they are not part of a publication."""


class OnlineSink(Protocol):
    """Where the newest row of every user goes."""

    def write(self, view: str, rows: pa.Table) -> None:
        """Write rows of a feature view: its join keys, features, event_timestamp and created_timestamp."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaSink:
    """A Delta table that takes each numbered commit once."""

    path: Path

    def is_made(self) -> bool:
        """Return whether the table is there."""
        return DeltaTable.is_deltatable(str(self.path))

    def make(self, rows: pa.Table) -> None:
        """Make the table with the schema of `rows`, where it is not there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_deltalake(str(self.path), rows, mode="ignore")

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        """Append `rows` as commit `version` of `app_id`; return False where the table has it already."""
        location = str(self.path)
        if self.is_made():
            seen = DeltaTable(location).transaction_version(app_id)
            if seen is not None and seen >= version:
                return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        properties = CommitProperties(app_transactions=[Transaction(app_id, version)])
        write_deltalake(location, rows, mode="append", commit_properties=properties)
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Publisher:
    """Publishes every stage of one memory.

    `encoder_version` is None while the PCA is not fitted: then texts are published and vectors wait.
    """

    memory: Memory
    tables: Mapping[str, DeltaSink]
    online: OnlineSink
    fuser: Callable[[str | None], Fuser]
    """The fusion in use with vectors of an encoder version, asked in every transaction."""
    encoder_version: str | None
    vector_width: int
    memory_window: int
    sequence_length: int
    clock: Callable[[], int]

    def publish(self, *, user_keys: Sequence[int] | None = None) -> dict[str, int]:
        """Publish what is not, of all users or of some; return the number of rows by stage.

        First, what a crashed run left half-written is finished. A Delta table that was lost is written anew, and so
        is the online store after `forget_online`.
        """
        counts = dict.fromkeys(VIEWS, 0)
        with self.memory.writing() as connection:  # a table is made only after this was committed
            self._forget_lost_tables(connection)
            self._versions(connection)
        self._finish_all(counts)
        with self.memory.writing() as connection:
            self._make_tables(connection)
            self._plan(connection, user_keys)
        self._finish_all(counts)
        self._restore_online()
        publish_sequences(self.memory, projection=self.projection, online=self.online)
        return counts

    def _restore_online(self) -> None:
        """Write every newest row of an online store that was emptied; where it crashes, the next one goes on."""
        created_time = self.clock()
        while True:
            with self.memory.writing() as connection:
                keys = next_to_restore(connection, count=USERS_PER_WRITE)
                if not keys:
                    return
                projection = self.projection(connection)
                for stage, view in VIEWS.items():
                    self._write_online(view, _online_rows(projection, stage, keys, created_time=created_time))

    def _forget_lost_tables(self, connection: sa.Connection) -> None:
        for stage, table in self.tables.items():
            if not table.is_made():
                forget_stage(connection, stage, done_time=self.clock())

    def _make_tables(self, connection: sa.Connection) -> None:
        """Make the tables that are not there, so that a join finds no row rather than no table."""
        projection = self.projection(connection)
        if not projection.knows_ids():  # a table of the wrong type of ids could never take a row
            return
        for stage, table in self.tables.items():
            if not table.is_made():
                table.make(_no_rows(projection, stage))

    def _plan(self, connection: sa.Connection, user_keys: Sequence[int] | None) -> None:
        created_time = self.clock()
        for stage in (SUMMARY, SHIFT):
            rows = unpublished_texts(connection, stage, user_keys=user_keys)
            plan(connection, stage, rows, created_time=created_time)
        if self.encoder_version is None:
            return
        versions = self._versions(connection)
        vectors, windows = (Rows(stage=stage, version=versions[stage]) for stage in (VECTOR, FUSED))
        due = users_to_check(connection, vectors=vectors, windows=windows, user_keys=user_keys)
        rows = unpublished_vectors(connection, vectors, user_keys=due)
        plan(connection, VECTOR, rows, created_time=created_time)
        rows = unpublished_windows(
            connection, windows, vectors=vectors, memory_window=self.memory_window, user_keys=due
        )
        plan(connection, FUSED, rows, created_time=created_time)

    def _finish_all(self, counts: dict[str, int]) -> None:
        while True:
            with self.memory.writing() as connection:
                publication = next_unfinished(connection)
                if publication is None:
                    return
                rows = self._write_out(connection, publication)
                finish(connection, publication, done_time=self.clock())
            counts[publication.stage] += rows

    def _write_out(self, connection: sa.Connection, publication: Publication) -> int:
        projection = self.projection(connection)
        user_keys = sorted({row.user_key for row in publication.rows})
        rows = self._delta_rows(projection, publication, user_keys)
        if len(rows):
            app_id = f"liber/{self.memory.identity}"
            self.tables[publication.stage].append(rows, app_id=app_id, version=publication.publication_id)
        for some in user_chunks(user_keys):
            found = _online_rows(projection, publication.stage, some, created_time=publication.created_time)
            self._write_online(VIEWS[publication.stage], found)
        return len(rows)

    def _delta_rows(self, projection: Projection, publication: Publication, user_keys: Sequence[int]) -> pa.Table:
        """Return the rows of a publication, less those that are superseded: something newer is published instead."""
        version = publication.rows[0].version if publication.rows else ""
        if publication.stage in (SUMMARY, SHIFT):
            texts = {((row.user_key, row.partition_index), row.version) for row in publication.rows}
            return projection.text_rows(
                publication.stage, user_keys=user_keys, keep=lambda key, version: (key, version) in texts
            )
        planned = {(row.user_key, row.partition_index): row for row in publication.rows}
        if publication.stage == VECTOR:
            found = projection.vectors(user_keys, version=version)
            kept = (one for one in found if _is_current([one], planned))
            return projection.vector_rows(
                kept, encoder_version=maker_of(version), created_time=publication.created_time
            )
        # Rows of a fusion that is no longer in use: the one in use has publications of its own.
        if version != self._versions(projection.connection)[FUSED]:
            return projection.fused_rows((), created_time=publication.created_time)
        windows = [window for window in projection.windows(user_keys).values() if _is_current(window, planned)]
        return projection.fused_rows(windows, created_time=publication.created_time)

    def _write_online(self, view: str, rows: pa.Table) -> None:
        if len(rows):
            self.online.write(view, rows)

    def _versions(self, connection: sa.Connection) -> dict[str, str]:
        """Return the version under which vectors and fused vectors are published now."""
        encoder = self.encoder_version or ""
        fusion = f"{self.fuser(self.encoder_version).version}/{encoder}"
        return {
            VECTOR: version_in_use(connection, VECTOR, made_by=encoder),
            FUSED: version_in_use(connection, FUSED, made_by=fusion),
        }

    def projection(self, connection: sa.Connection) -> Projection:
        """Return the feature rows of one snapshot of the memory."""
        return Projection(
            connection=connection,
            fuser=self.fuser(self.encoder_version),
            vector_version=self._versions(connection)[VECTOR] if self.encoder_version else None,
            vector_width=self.vector_width,
            memory_window=self.memory_window,
            sequence_length=self.sequence_length,
        )


def _is_current(window: Sequence[PartitionVector], planned: Mapping[PartitionKey, PublishedRow]) -> bool:
    """Return whether the row of a window was planned, and is made of the same texts and partitions as it was then."""
    row = planned.get((window[-1].user_key, window[-1].partition_index))
    if row is None:
        return False
    is_newer = row.text_id is not None and max(one.text_id for one in window) > row.text_id
    return not is_newer and row.index_sum in (None, sum(one.partition_index + 1 for one in window))


def _no_rows(projection: Projection, stage: str) -> pa.Table:
    if stage in (SUMMARY, SHIFT):
        return projection.newest_text_rows(stage, user_keys=())
    if stage == VECTOR:
        return projection.vector_rows((), encoder_version="", created_time=0)
    return projection.fused_rows((), created_time=0)


def _online_rows(projection: Projection, stage: str, user_keys: Sequence[int], *, created_time: int) -> pa.Table:
    if stage in (SUMMARY, SHIFT):
        return projection.newest_text_rows(stage, user_keys=user_keys)
    if stage == VECTOR:
        return projection.memory_rows(user_keys, created_time=created_time)
    return projection.newest_fused_rows(user_keys, created_time=created_time)
