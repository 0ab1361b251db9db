"""Delta tables that take each numbered commit once, whoever else writes to them.

A number is looked for in the same state of the table that the commit is based on: where another process brought a
number in between, the commit conflicts with it, and the table is looked at anew.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from liber_feast.errors import MemoryFailure, RetryableError, StoreFailure, one_line

TRIES = 10
PAUSE_S = 0.005
KEPT = "What was to be written is kept in the memory; make room, or give the rights, and run the same command again."
_CONFIGURATION = {"delta.checkpointInterval": "10"}
"""Whoever opens a table reads every commit since its last checkpoint; the usual 100 make opening cost most of all."""
_COMMITS = (".json", ".checkpoint.parquet")
MESSAGE_LENGTH = 300
"""Of what another program says, when it is quoted: it may go on for pages."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaSink:
    """A Delta table that takes each numbered commit once.

    Its methods that write raise `StoreFailure` where the disk is full or the folder is not ours to write.
    """

    path: Path
    _checked: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """The memories whose numbers were compared with the table's."""

    def is_made(self) -> bool:
        """Return whether the table is there: whether it has a first commit."""
        try:
            with os.scandir(self.path / "_delta_log") as entries:
                return any(entry.name.endswith(_COMMITS) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def make(self, rows: pa.Table) -> None:
        """Make the table with the schema of `rows`, empty, where it is not there."""
        with in_one_line(self.path, remedy=KEPT):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_deltalake(str(self.path), rows.slice(0, 0), mode="ignore", configuration=_CONFIGURATION)
            except CommitFailedError:
                if not self.is_made():  # another process made it at the same time
                    raise

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        """Append `rows` as commit `version` of `app_id`; return False where the table has it, or a later one, already.

        Raises:
            RetryableError: others change the table all the time.
        """
        if not self.is_made():
            self.make(rows)
        try:
            append = partial(self._append, rows, app_id=app_id, version=version)
            return retrying(append, path=self.path, pause_s=PAUSE_S, remedy=KEPT)
        except CommitFailedError as conflict:
            raise RetryableError(
                f"The Delta table {self.path} was changed by others {TRIES} times while it was written, last:"
                f" {quoted(conflict)}. Nothing was appended; try again."
            ) from conflict

    def check_number(self, newest: int, *, app_id: str) -> None:
        """Check once that a memory whose newest number is `newest` knows every commit of its own in the table.

        Raises:
            MemoryFailure: the table has a later one: it would take what is new for something that it has.
        """
        if app_id in self._checked:
            return
        number = self.last_number(app_id)
        if number is not None and number > newest:
            raise MemoryFailure(
                f"The memory is older than the Delta table {self.path}: it knows publications up to {newest}, the table"
                f" has number {number}. It was restored from an older copy: run `liber republish`."
            )
        self._checked.add(app_id)

    def last_number(self, app_id: str) -> int | None:
        """Return the number of the last commit of `app_id`, or None where the table has none or is not there."""
        return DeltaTable(str(self.path)).transaction_version(app_id) if self.is_made() else None

    def _append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        table = DeltaTable(str(self.path))
        seen = table.transaction_version(app_id)
        if seen is not None and seen >= version:
            return False
        properties = CommitProperties(app_transactions=[Transaction(app_id, version)])
        write_deltalake(table, rows, mode="append", commit_properties=properties)
        return True


def newest_commit(path: Path) -> tuple[str, int, int] | None:
    """Return what changes with every commit to a table in a folder, and where it is made anew; None: no folder."""
    try:
        with os.scandir(path / "_delta_log") as entries:
            newest = max((entry for entry in entries if entry.name.endswith(".json")), key=lambda one: one.name)
            found = newest.stat()
    except (OSError, ValueError):  # not there, in a store that is no file system, or without a commit
        return None
    return newest.name, found.st_mtime_ns, found.st_ino


def retrying(work: Callable[[], _T], *, path: Path | str, pause_s: float, remedy: str) -> _T:
    """Return what `work` on a table returns, done again where another writer came between.

    `pause_s` is the longest pause after the first conflict; it doubles with every further one.

    Raises:
        CommitFailedError: the last conflict.
        StoreFailure: as `in_one_line`.
    """
    for attempt in range(TRIES):
        try:
            with in_one_line(path, remedy=remedy):
                return work()
        except CommitFailedError as error:
            conflict = error
            time.sleep(random.uniform(0, pause_s * 2**attempt))
    raise conflict


@contextmanager
def in_one_line(path: Path | str, *, remedy: str) -> Iterator[None]:
    """Say which table could not be written, and what to do; a conflict with another writer stays as it is.

    Raises:
        StoreFailure: the disk is full, or the folder is not ours to write.
    """
    try:
        yield
    except (OSError, DeltaError) as error:
        if isinstance(error, CommitFailedError) and "os error" not in str(error):
            raise
        raise StoreFailure(f"The Delta table {path} cannot be written: {quoted(error)}. {remedy}") from error


def quoted(error: BaseException, *, length: int = MESSAGE_LENGTH) -> str:
    """Return what another program says, cut to `length` characters."""
    return one_line(error)[:length].rstrip(".")
