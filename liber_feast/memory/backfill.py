"""Append a whole log in transactions of bounded size: its users in groups, each with all of its behaviors.

A log is not sorted, and appending pieces of it in its own order would make behaviors late that one append would not.
So its rows are checked and spilled into files by user, and a group of users is appended at a time.

The compute engine materializes a window of the log like this:

    with report.timed("append"):
        appended = append_in_groups(
            job.memory,
            (rows.rename_columns({view.join_keys[0]: USER, pull.time: EVENT_TIME}) for rows in pull.batches()),
            condition=job.condition,
            folder=repo_folder(self.repo_config) / "data",
            check=lambda table: self.check(view, table),
            item_vectors=job.title_vectors if isinstance(job.condition, DriftCondition) else None,
        )
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa

from liber_feast.behavior import USER, CheckedBehaviors, canonical_order
from liber_feast.errors import InvalidBehaviors, StoreFailure, one_line
from liber_feast.memory.append import Appended, VectorsOf
from liber_feast.memory.store import Memory
from liber_feast.memory.user_states import Ints
from liber_feast.partition import Condition

BATCH = 100_000
"""Behaviors appended in one transaction; a user with more is appended alone."""
BUCKETS = 64
LEVELS = 5
"""How often a bucket that is too large is split: 2**30 buckets hold any log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bucket:
    """A file of behaviors whose users' hashes have the digits number 0 to `level` in common; it has no name.

    So nothing of it is left where the process ends, whatever ends it.
    """

    file: IO[bytes]
    row_count: int
    level: int

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows as they were written, once."""
        self.file.seek(0)
        with pa.ipc.open_stream(self.file) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
        self.file.close()


def append_in_groups(
    memory: Memory,
    tables: Iterable[pa.Table],
    *,
    condition: Condition,
    folder: Path,
    check: Callable[[pa.Table], CheckedBehaviors],
    batch: int = BATCH,
    item_vectors: VectorsOf | None = None,
) -> Appended:
    """Append the behaviors of `tables`, in any order, as one append of all of them would.

    All rows are checked before the first is appended. The process holds one of `tables` or `batch` behaviors at a
    time; of a user with more, all. A transaction takes a group of users: after a crash the groups done are there, and
    the same call again finds them as duplicates and does the rest. Duplicates among the rows count as those of the
    memory do. `folder` takes the checked rows meanwhile, about 100 bytes each, in files without names.

    Raises:
        InvalidBehaviors: a row breaks the schema, or ids are of another type than the memory's; nothing was taken.
        StoreFailure: `folder` cannot take the checked rows.
        RetryableError: another process holds the memory for longer than a transaction waits.
    """
    with ExitStack() as files:
        checked = _Checked(check)
        spill = _Spill(folder=folder, files=files)
        buckets = spill.buckets(checked.tables(tables), level=0)
        total = Appended()
        for group in spill.groups(buckets, batch=batch):
            rows = canonical_order(group)
            appended = memory.append(rows.table, condition=condition, repeated=rows.repeated, item_vectors=item_vectors)
            total = total.plus(appended)
    return total


class _Checked:
    """Checks tables one after the other, as parts of one; rows that are there twice stay, to be counted by user."""

    def __init__(self, check: Callable[[pa.Table], CheckedBehaviors]) -> None:
        self._check = check

    def tables(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        schema, first_row = None, 0
        for table in tables:
            try:
                checked = self._check(table)
            except InvalidBehaviors as error:
                if not first_row:
                    raise
                place = f"{error.message} Rows are counted from row {first_row} on."
                raise InvalidBehaviors(place, column=error.column, row_count=error.row_count) from error
            first_row += len(table)
            if not len(checked.table):  # its columns may be of any type
                continue
            schema = schema or checked.table.schema
            _refuse_another_type(checked.table, schema, first_row=first_row - len(table))
            yield pa.concat_tables([checked.table, checked.repeated])


def _refuse_another_type(table: pa.Table, schema: pa.Schema, *, first_row: int) -> None:
    for field in schema:
        found = table.schema.field(field.name).type
        if found != field.type:
            raise InvalidBehaviors(
                f"behaviors: column {field.name!r} has type {found} from row {first_row} on, but {field.type} before."
                " Use one type of ids.",
                column=field.name,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spill:
    """Makes buckets in `folder`, whose files `files` closes at the latest."""

    folder: Path
    files: ExitStack

    def buckets(self, tables: Iterable[pa.Table], *, level: int) -> list[_Bucket]:
        """Write rows into buckets by their users' hashes, in the order they come; return those that got some."""
        counts = np.zeros(BUCKETS, np.int64)
        opened: dict[int, tuple[IO[bytes], pa.ipc.RecordBatchStreamWriter]] = {}
        for table in tables:
            codes = _digits(table[USER], level=level)
            rows = table.take(pa.array(np.argsort(codes, kind="stable"))).combine_chunks()
            sizes = np.bincount(codes, minlength=BUCKETS)
            stops = np.cumsum(sizes)
            with self._writing():
                for bucket in np.flatnonzero(sizes).tolist():
                    if bucket not in opened:
                        file = self.files.enter_context(TemporaryFile(dir=self.folder))  # noqa: SIM115
                        opened[bucket] = file, pa.ipc.new_stream(file, table.schema)
                    opened[bucket][1].write_table(rows.slice(stops[bucket] - sizes[bucket], sizes[bucket]))
            counts += sizes
        with self._writing():
            for written, writer in opened.values():
                writer.close()
                written.flush()
        return [_Bucket(file=opened[one][0], row_count=int(counts[one]), level=level) for one in sorted(opened)]

    def groups(self, buckets: Iterable[_Bucket], *, batch: int) -> Iterator[pa.Table]:
        """Yield the rows of whole users, at most `batch` at once unless one bucket of the last level has more."""
        group: list[_Bucket] = []
        for bucket in buckets:
            if bucket.row_count > batch and bucket.level < LEVELS:
                yield from self.groups(self.buckets(bucket.tables(), level=bucket.level + 1), batch=batch)
                continue
            if group and sum(one.row_count for one in group) + bucket.row_count > batch:
                yield _rows(group)
                group = []
            group.append(bucket)
        if group:
            yield _rows(group)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise StoreFailure(
                f"The checked behaviors cannot be put aside in {self.folder}: {error.strerror or one_line(error)}."
                " Nothing was appended that is not whole; make room and run the same command again."
            ) from error


def _digits(users: pa.ChunkedArray, *, level: int) -> Ints:
    """Return the digit number `level`, in base BUCKETS, of each user's hash."""
    encoded = users.combine_chunks().dictionary_encode()
    hashes = pd.util.hash_array(encoded.dictionary.to_numpy(zero_copy_only=False), categorize=False)
    digits: Ints = (hashes // np.uint64(BUCKETS**level) % np.uint64(BUCKETS)).astype(np.int64)
    of_rows: Ints = digits[encoded.indices.to_numpy()]
    return of_rows


def _rows(buckets: Iterable[_Bucket]) -> pa.Table:
    return pa.concat_tables([table for bucket in buckets for table in bucket.tables()]).combine_chunks()
