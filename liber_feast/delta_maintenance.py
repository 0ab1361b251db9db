"""What is done to whole Delta tables: users are deleted from them, rows replaced, old files removed.

A handle that is not new deletes nothing and says so to nobody: each of these opens the table anew, and again where
another writer came between.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from liber_feast.behavior import USER
from liber_feast.delta import in_one_line, quoted, retrying
from liber_feast.errors import RetryableError

PAUSE_S = 0.01
AGAIN = "Make room, or give the rights, and run the same command again."
LOG_RETENTION = "delta.logRetentionDuration"
USUAL_LOG_RETENTION = "interval 30 days"
"""Delta's own, set again after everything was removed."""
HOUR_OF_GRACE = 1
"""Hours for which a file that no commit names may be one that somebody still writes."""
_HALF_WRITTEN = re.compile(r"#[0-9]+$|^_commit_.*\.json\.tmp$")
"""How files are named until they are whole."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a Delta table lies."""

    path: str
    options: Mapping[str, str] = field(default_factory=dict)
    """What deltalake needs for an object store."""

    def is_made(self) -> bool:
        """Return whether the table is there."""
        return bool(DeltaTable.is_deltatable(self.path, dict(self.options) or None))

    def open(self) -> DeltaTable:
        """Return the table as it is now."""
        return DeltaTable(self.path, storage_options=dict(self.options) or None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbered:
    """The number that a commit carries, of those of one memory."""

    app_id: str
    number: int

    def properties(self) -> CommitProperties:
        """Return what deltalake takes."""
        return CommitProperties(app_transactions=[Transaction(self.app_id, self.number)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What a table was before and is now."""

    files_before: int
    """Of its newest version."""
    files_after: int
    removed_count: int
    """Data files that were there before and are gone; of a table that is on no local disk, those that were named."""


def replace(
    place: Place,
    rows: Iterable[pa.Table],
    *,
    schema: pa.Schema,
    numbered: Numbered,
    user_ids: Sequence[str | int] | None = None,
) -> int:
    """Put `rows` in the place of all rows, or of those of some users, in one commit; return how many they are.

    The rows are read once: where another writer comes between, nothing is replaced.

    Raises:
        RetryableError: another writer came between.
        StoreFailure: the table cannot be written.
    """
    count = 0

    def batches() -> Iterable[pa.RecordBatch]:
        nonlocal count
        for table in rows:
            count += len(table)
            yield from table.to_batches()

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    predicate = None if user_ids is None or not place.is_made() else _is_of(user_ids, column=USER, schema=schema)
    try:
        with in_one_line(place.path, remedy=AGAIN):
            write_deltalake(
                place.path,
                reader,
                mode="overwrite",
                predicate=predicate,
                storage_options=dict(place.options) or None,
                commit_properties=numbered.properties(),
            )
    except CommitFailedError as error:
        raise _conflict(place, error) from error
    return count


def delete_users(
    place: Place, user_ids: Sequence[str | int], *, column: str = USER, numbered: Numbered | None = None
) -> int:
    """Delete the rows of users; return how many there were. With a number a commit is made in any case.

    Raises:
        RetryableError: others change the table all the time.
        StoreFailure: the table cannot be written.
    """
    properties = numbered.properties() if numbered else None

    def delete() -> int:
        table = place.open()
        before = table.version()
        schema = pa.schema(table.schema().to_arrow())
        found = table.delete(_is_of(user_ids, column=column, schema=schema), commit_properties=properties)
        if properties and place.open().version() == before:  # so that what carries a lower number is not taken
            empty = pa.schema(place.open().schema().to_arrow()).empty_table()
            write_deltalake(place.open(), empty, mode="append", commit_properties=properties)
        return int(found["num_deleted_rows"] or 0)

    return _retrying(place, delete)


def purge(place: Place, *, is_alone: bool) -> int:
    """Remove every file that only older versions of the table have, and the log of those; return how many.

    Whoever reads an older version now has to read again. Where others may be writing (`is_alone` is false), files of
    the last hour that no commit names stay: they may be about to be committed.

    Raises:
        RetryableError, StoreFailure: as `delete_users`.
    """

    def vacuum() -> int:
        removed = set(_vacuum(place, hours=0, full=is_alone))
        if not is_alone:
            removed |= set(_vacuum(place, hours=HOUR_OF_GRACE, full=True))
        return len(removed) + _sweep(place, hours=0 if is_alone else HOUR_OF_GRACE)

    removed_count = _retrying(place, vacuum)
    _retrying(place, lambda: _clean_log(place, hours=0))
    return removed_count


def compact(place: Place, *, retention_hours: int) -> Compacted:
    """Join small files, and remove files and log that no version of the last `retention_hours` needs.

    Raises:
        RetryableError, StoreFailure: as `delete_users`.
    """
    files_before, there_before = len(place.open().file_uris()), _data_files(place)
    _retrying(place, lambda: _join_files(place))
    removed = set(_retrying(place, lambda: _vacuum(place, hours=retention_hours, full=False)))
    hours = max(retention_hours, HOUR_OF_GRACE)  # what killed writers left
    removed |= set(_retrying(place, lambda: _vacuum(place, hours=hours, full=True)))
    swept_count = _retrying(place, lambda: _sweep(place, hours=hours))
    _retrying(place, lambda: _clean_log(place, hours=retention_hours))
    gone_count = (
        len(removed) + swept_count if there_before is None else len(there_before - (_data_files(place) or set()))
    )
    return Compacted(files_before=files_before, files_after=len(place.open().file_uris()), removed_count=gone_count)


def _data_files(place: Place) -> set[Path] | None:
    """Return the files below a local table's folder but for its log; None where it is on no local disk.

    deltalake names files of older versions as removed that an earlier run has removed already.
    """
    if "://" in place.path:
        return None
    return {path for path in Path(place.path).rglob("*") if path.is_file() and "_delta_log" not in path.parts}


def _join_files(place: Place) -> None:
    place.open().optimize.compact()


def _vacuum(place: Place, *, hours: int, full: bool) -> list[str]:
    return place.open().vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=full)


def _sweep(place: Place, *, hours: int) -> int:
    """Remove what killed writers left half-written on a local disk; deltalake itself does not see it."""
    if "://" in place.path:
        return 0
    latest = time.time() - 3_600 * hours
    parts = [path for path in Path(place.path).rglob("*") if _HALF_WRITTEN.search(path.name)]
    old = [path for path in parts if path.stat().st_mtime <= latest]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def _clean_log(place: Place, *, hours: int) -> None:
    wanted = f"interval {hours} hours" if hours else "interval 0 seconds"
    if place.open().metadata().configuration.get(LOG_RETENTION) != wanted:
        place.open().alter.set_table_properties({LOG_RETENTION: wanted})
    table = place.open()
    table.create_checkpoint()
    table.cleanup_metadata()
    if not hours:
        place.open().alter.set_table_properties({LOG_RETENTION: USUAL_LOG_RETENTION})


def _is_of(user_ids: Sequence[str | int], *, column: str, schema: pa.Schema) -> str:
    """Return the SQL that says of a row whether it is of one of the users."""
    is_integer = pa.types.is_integer(schema.field(column).type)
    values = [str(int(one)) if is_integer else "'" + str(one).replace("'", "''") + "'" for one in user_ids]
    name = column.replace('"', '""')
    return f'"{name}" IN ({", ".join(values)})'


def _retrying(place: Place, work: Callable[[], _T]) -> _T:
    try:
        return retrying(work, path=place.path, pause_s=PAUSE_S, remedy=AGAIN)
    except CommitFailedError as conflict:
        raise _conflict(place, conflict) from conflict


def _conflict(place: Place, error: CommitFailedError) -> RetryableError:
    return RetryableError(
        f"The Delta table {place.path} was changed by others meanwhile: {quoted(error, length=200)}. Run the"
        " same command again."
    )
