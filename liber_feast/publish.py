"""Publish what the memory holds: Delta tables for training, the online store for serving.

Both are projections of the memory, written at least once into idempotent sinks: a Delta commit carries the
publication's number and is skipped when the table has seen it; an online row is the user's newest of the memory and
carries the publication's time, so that an older one never replaces it.

One process at a time publishes, by the lease `publish`. No transaction is open while a sink is written: the memory is
read before, and marked after, in a transaction that ends well only while the lease is held.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import sqlalchemy as sa

from liber_feast.delta import DeltaSink as DeltaSink  # noqa: PLC0414  (it is asked for here, too)
from liber_feast.errors import RetryableError
from liber_feast.evidence import EVIDENCE, ITEM_TEXT
from liber_feast.fuser import Fuser
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory import Memory
from liber_feast.memory.clock import now_us
from liber_feast.memory.evidence import unpublished_evidence
from liber_feast.memory.item_vectors import (
    forget_published_items,
    has_unpublished_items,
    item_encoder_in_use,
    plan_items,
)
from liber_feast.memory.leases import LEASE_S, PUBLISH, Lease, held, renew
from liber_feast.memory.publications import (
    PCA_VERSION,
    STAGES_AT_ONCE,
    Found,
    Publication,
    Rows,
    finish,
    forget_stage,
    has_unfinished,
    in_pieces,
    is_restoring,
    mark_restored,
    newest_created_time,
    newest_number,
    next_to_restore,
    next_unfinished,
    plan,
    unpublished_texts,
    unpublished_vectors,
    unpublished_windows,
    use_version,
    users_at_work,
    users_to_check,
    version_in_use,
)
from liber_feast.memory.settings import setting
from liber_feast.memory.status import mark_online
from liber_feast.memory.texts import user_chunks
from liber_feast.memory.vectors import VECTOR
from liber_feast.newest_rows import newest_item_rows, no_rows, online_rows
from liber_feast.online_sink import OnlineSink as OnlineSink  # noqa: PLC0414  (it is asked for here, too)
from liber_feast.planned_rows import planned_rows
from liber_feast.projection import FUSED, Projection
from liber_feast.sequences import publish_sequences
from liber_feast.stream_metrics import record_freshness, record_publish

VIEWS: Mapping[str, str] = {
    SUMMARY: "partition_summary",
    SHIFT: "partition_shift",
    VECTOR: "long_term_memory",
    FUSED: "fused_vector",
}
"""The feature view that each stage fills which every feature repo has, in the order of publishing."""
EVIDENCE_VIEWS: Mapping[str, str] = {EVIDENCE: "partition_evidence", ITEM_TEXT: "item_text"}
"""Those of the stage that a feature repo may have."""
ALL_VIEWS: Mapping[str, str] = {**VIEWS, **EVIDENCE_VIEWS}
USERS_PER_WRITE = 1_000
"""Users whose online rows are written at once, where they are not part of a publication."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publisher:
    """Publishes every stage of one memory that has a table.

    `encoder_version` is None while the PCA is not fitted: then texts are published and vectors wait.
    """

    memory: Memory
    tables: Mapping[str, DeltaSink]
    online: OnlineSink
    fuser: Callable[[str | None], Fuser]
    """The fusion in use with vectors of an encoder version, asked for every publication."""
    encoder_version: str | None
    vector_width: int
    memory_window: int
    sequence_length: int
    clock: Callable[[], int]
    lease_s: float = LEASE_S
    """How long the others wait for a publisher that died."""
    executor: Callable[[int], Executor] = ThreadPoolExecutor
    """What writes so many Delta tables side by side."""

    def publish(self, *, user_keys: Sequence[int] | None = None) -> dict[str, int]:
        """Publish what is not, of all users or of some; return the number of rows by stage that were written here.

        It returns when every text and vector of these users is readable that was there when it was called: where
        another process or thread publishes, it is waited for, and what that one left is done. What a crashed run left
        half-written is finished. A Delta table that was lost is written anew, and so is the online store after
        `forget_online`.

        Raises:
            LeaseLost: this process stood still for so long that another one publishes; nothing was marked.
            MemoryFailure: the memory is older than its tables.
            StoreFailure: a table cannot be written.
            RetryableError: the memory is locked or away, or others change a table all the time.
        """
        counts, is_restoring_all = dict.fromkeys(self.tables, 0), False
        if self._is_due(user_keys):
            with held(self.memory, PUBLISH, seconds=self.lease_s) as lease:
                turn = _Turn(publisher=self, lease=lease)
                turn.publish(user_keys, counts)
                is_restoring_all = turn.restore_online()
        publish_sequences(
            self.memory,
            projection=self.projection,
            online=self.online,
            user_keys=None if is_restoring_all else user_keys,
        )
        return counts

    def _is_due(self, user_keys: Sequence[int] | None) -> bool:
        if not all(table.is_made() for table in self.tables.values()):
            return True
        fuser = self.fuser(self.encoder_version)
        with self.memory.reading() as connection:
            if has_unfinished(connection) or is_restoring(connection):
                return True
            if self.has_items(connection):
                return True
            return any(rows for _, rows in self.unpublished(connection, user_keys, fuser=fuser))

    def unpublished(
        self, connection: sa.Connection, user_keys: Sequence[int] | None, *, fuser: Fuser
    ) -> Iterator[Found]:
        """Yield each stage of users and its rows, of all users or of some, that no publication holds."""
        for stage in (SUMMARY, SHIFT):
            yield stage, unpublished_texts(connection, stage, user_keys=user_keys)
        if EVIDENCE in self.tables and (item_version := item_encoder_in_use(connection)):
            yield EVIDENCE, unpublished_evidence(connection, item_version, user_keys=user_keys)
        if self.encoder_version is None:
            return
        versions = self.versions(connection, fuser)
        vectors, windows = (Rows(stage=stage, version=versions[stage]) for stage in (VECTOR, FUSED))
        due = users_to_check(connection, vectors=vectors, windows=windows, user_keys=user_keys)
        yield VECTOR, unpublished_vectors(connection, vectors, user_keys=due)
        yield (
            FUSED,
            unpublished_windows(connection, windows, vectors=vectors, memory_window=self.memory_window, user_keys=due),
        )

    def has_items(self, connection: sa.Connection) -> bool:
        """Return whether there are vectors of items that no publication holds."""
        return ITEM_TEXT in self.tables and has_unpublished_items(connection)

    def versions(self, connection: sa.Connection, fuser: Fuser) -> dict[str, str]:
        """Return the version under which vectors and fused vectors are published now."""
        made_by = f"{fuser.version}/{self.encoder_version or ''}"
        return {
            VECTOR: self._vector_version(connection),
            FUSED: version_in_use(connection, FUSED, made_by=made_by),
        }

    def _vector_version(self, connection: sa.Connection) -> str:
        return version_in_use(connection, VECTOR, made_by=self.encoder_version or "")

    def projection(self, connection: sa.Connection, fuser: Fuser | None = None) -> Projection:
        """Return the feature rows of one snapshot of the memory, fused by `fuser` or else by the fusion in use."""
        fuser = fuser or self.fuser(self.encoder_version)
        return Projection(
            connection=connection,
            fuser=fuser,
            vector_version=self._vector_version(connection) if self.encoder_version else None,
            vector_width=self.vector_width,
            memory_window=self.memory_window,
            sequence_length=self.sequence_length,
        )

    def delta_rows(self, projection: Projection, publication: Publication) -> pa.Table:
        """Return the rows of a publication, less those that are superseded: something newer is published instead."""
        in_use = self.versions(projection.connection, projection.fuser)[FUSED] if publication.stage == FUSED else None
        return planned_rows(projection, publication, fused_version=in_use)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turn:
    """What the holder of the lease does."""

    publisher: Publisher
    lease: Lease

    def publish(self, user_keys: Sequence[int] | None, counts: dict[str, int]) -> None:
        """Plan what is due, and write out all that is planned; add the rows by stage to `counts`.

        Those on whom somebody works are published along: where many publish at once, few of them have to.
        """
        self._check_tables()
        self._plan(user_keys)
        while publications := self._next():
            gone = [one.stage for one in publications if one.stage not in self.publisher.tables]
            if gone:  # their views are gone since; where they come back, all is planned again
                with self._marking("lost") as connection:
                    for stage in gone:
                        self._forget(connection, stage)
                continue
            for stage, count in self._write_out(publications).items():
                counts[stage] += count

    def restore_online(self) -> bool:
        """Write every newest row of an online store that was emptied; return whether it was."""
        publisher, was_emptied = self.publisher, False
        created_time = publisher.clock()
        fuser = publisher.fuser(publisher.encoder_version)
        while True:
            with publisher.memory.reading() as connection:
                restoring = next_to_restore(connection, count=USERS_PER_WRITE)
                if restoring is None:
                    return was_emptied
                number, projection = newest_created_time(connection), publisher.projection(connection, fuser)
                found = {
                    ALL_VIEWS[stage]: online_rows(projection, stage, restoring.user_keys, created_time=created_time)
                    for stage in publisher.tables
                    if stage != ITEM_TEXT
                }
                if ITEM_TEXT in publisher.tables and restoring.is_first:
                    found[ALL_VIEWS[ITEM_TEXT]] = newest_item_rows(projection)
            for view, rows in found.items():
                self._write_online(view, rows, number=number, force=True)
            with self._marking("restored") as connection:
                mark_restored(connection, restoring)
            was_emptied = True

    def _check_tables(self) -> None:
        """Make the tables that are not there, so that a join finds no row rather than no table.

        What was in a table that was lost is planned again; a table is made only after that was committed.
        """
        publisher = self.publisher
        lost = {stage: table for stage, table in publisher.tables.items() if not table.is_made()}
        if lost:
            with self._marking("lost") as connection:
                for stage in lost:
                    self._forget(connection, stage)
            with publisher.memory.reading() as connection:
                projection = publisher.projection(connection)
                # A table of the wrong type of ids could never take a row.
                empty = {stage: no_rows(projection, stage) for stage in lost} if projection.knows_ids() else {}
            for stage, rows in empty.items():
                lost[stage].make(rows)
        with publisher.memory.reading() as connection:
            newest = newest_number(connection)
        for table in publisher.tables.values():
            table.check_number(newest, app_id=self._app_id)

    def _forget(self, connection: sa.Connection, stage: str) -> None:
        forget_stage(connection, stage, done_time=self.publisher.clock())
        if stage == ITEM_TEXT:
            forget_published_items(connection)

    def _plan(self, user_keys: Sequence[int] | None) -> None:
        publisher = self.publisher
        fuser = publisher.fuser(publisher.encoder_version)
        with publisher.memory.reading() as connection:
            keys = None if user_keys is None else sorted({*user_keys, *users_at_work(connection)})
            found = [one for one in publisher.unpublished(connection, keys, fuser=fuser) if one[1]]
            has_items = publisher.has_items(connection)
        for some in in_pieces(found) if found else ():
            with self._marking("plan") as connection:
                self._use_versions(connection, fuser, stages=[stage for stage, _ in some])
                plan(connection, some, clock_time=publisher.clock())
        if has_items:
            with self._marking("plan") as connection:
                plan_items(connection, clock_time=publisher.clock())

    def _next(self) -> list[Publication]:
        with self.publisher.memory.reading() as connection:
            return next_unfinished(connection)

    def _write_out(self, publications: Sequence[Publication]) -> dict[str, int]:
        """Write publications to their Delta tables and online, and mark them done; return their rows by stage.

        Each is of another stage, so that their tables are written side by side, and online rows meanwhile. Nothing is
        marked before all is written: what failed, or a crash left half-written, is written again as a whole.
        """
        publisher = self.publisher
        fuser = publisher.fuser(publisher.encoder_version)
        with publisher.memory.reading() as connection:
            projection = publisher.projection(connection, fuser)
            rows = {one.stage: publisher.delta_rows(projection, one) for one in publications}
        with self._appending({one.publication_id: (one.stage, rows[one.stage]) for one in publications}):
            self._show(publications, fuser)
            with publisher.memory.reading() as connection:
                online_time = now_us(connection)
        fused = [key for one in publications if one.stage == FUSED for key in one.partition_keys]  # shown last
        with self._marking("done") as connection:
            self._use_versions(connection, fuser, stages=list(rows))
            for one in publications:
                finish(connection, one, done_time=publisher.clock())
            seconds = mark_online(connection, fused, now=online_time)
        for second in seconds:
            record_freshness(second)
        return {stage: len(some) for stage, some in rows.items()}

    @contextmanager
    def _appending(self, rows: Mapping[int, tuple[str, pa.Table]]) -> Iterator[None]:
        """Append rows, by the number of their publication, to the Delta tables of their stages, meanwhile."""
        due = {number: found for number, found in rows.items() if len(found[1])}
        with self.publisher.executor(max(1, len(due))) as pool:
            appended = [pool.submit(self._append, stage, some, number=number) for number, (stage, some) in due.items()]
            yield
            for one in appended:
                one.result()

    def _append(self, stage: str, rows: pa.Table, *, number: int) -> None:
        with _timed(stage, "delta"):
            self.publisher.tables[stage].append(rows, app_id=self._app_id, version=number)

    def _show(self, publications: Sequence[Publication], fuser: Fuser) -> None:
        """Write the newest rows of the users and items of publications online."""
        publisher = self.publisher
        pieces = [(one, some) for one in publications for some in user_chunks(one.user_keys)]
        for start in range(0, len(pieces), STAGES_AT_ONCE):
            with publisher.memory.reading() as connection:
                projection = publisher.projection(connection, fuser)
                found = [
                    (one, online_rows(projection, one.stage, some, created_time=one.created_time))
                    for one, some in pieces[start : start + STAGES_AT_ONCE]
                ]
            for one, rows in found:
                with _timed(one.stage, "online"):
                    self._write_online(ALL_VIEWS[one.stage], rows, number=one.created_time)
        for publication in publications:
            if publication.stage == ITEM_TEXT:
                self._items_online(publication)

    def _items_online(self, publication: Publication) -> None:
        """Write the newest row of each item of a publication online."""
        with self.publisher.memory.reading() as connection:
            projection = self.publisher.projection(connection)
            rows = newest_item_rows(projection, publication_id=publication.publication_id)
        with _timed(ITEM_TEXT, "online"):
            self._write_online(ALL_VIEWS[ITEM_TEXT], rows, number=publication.created_time)

    def _use_versions(self, connection: sa.Connection, fuser: Fuser, *, stages: Sequence[str]) -> None:
        """Keep the versions under which vectors are published, or are not any more, where `stages` has some."""
        if VECTOR in stages or FUSED in stages:
            if (setting(connection, PCA_VERSION) or self.publisher.encoder_version) != self.publisher.encoder_version:
                raise RetryableError("The vectors of the memory are made by another PCA since. Publish again.")
            for stage, version in self.publisher.versions(connection, fuser).items():
                use_version(connection, stage, version)

    def _write_online(self, view: str, rows: pa.Table, *, number: int, force: bool = False) -> None:
        if len(rows):
            self.publisher.online.write(view, rows, number=number, force=force)

    @contextmanager
    def _marking(self, what: str) -> Iterator[sa.Connection]:
        """One transaction, which rolls back where the lease is lost."""
        with self.publisher.memory.writing(what) as connection:
            renew(connection, self.lease)
            yield connection

    @property
    def _app_id(self) -> str:
        return f"liber/{self.publisher.memory.identity}"


@contextmanager
def _timed(stage: str, sink: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    record_publish(stage=stage, sink=sink, seconds=time.perf_counter() - start)
