"""MovieLens 100K's `u1.base` with the profiles that gpt-4o-mini wrote of it, chunk by chunk (the Lusifer project).

The model read the last forty ratings of a user, ten at a time, the newest ten first, and wrote after each chunk the
whole profile and what had changed in it. So chunk k is partition k - 1, its profile the summary, the change the shift;
a profile knows of nothing but the chunks up to its own. `u1.test` is for the judgement alone.
"""

import ast
import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from liber_feast.behavior import EVENT_TIME, ITEM, TIMESTAMP, USER
from liber_feast.datasets.data_set import DataSet, ExpectedCounts, make_data_set
from liber_feast.datasets.movielens import ML_100K, read_100k, read_ratings
from liber_feast.datasets.source_file import reading, the_file
from liber_feast.errors import DataSetError

MODEL = "gpt-4o-mini"
BASE, TEST = "u1.base", "u1.test"
BASE_COUNTS = ExpectedCounts(behaviors=80_000, users=943, items=ML_100K.items)
CHUNK, READ = 10, 40
"""Ratings of a chunk, and how many of a user's newest ratings the model read at most."""

USER_COLUMN, SERIES, CHANGES = "user_id", "intermediate_user_profiles", "profile_changes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Profiled:
    """What is learned from, what is judged on, and the lines of `liber import-texts`."""

    data_set: DataSet
    """The ratings of `u1.base`."""
    test: pa.Table
    """Those of `u1.test`: user_id, item_id, rating, event_timestamp."""
    lines: tuple[Mapping[str, Any], ...]
    """One a chunk, by user."""

    def write_lines(self, path: Path) -> None:
        """Write the lines as JSONL."""
        rows = (json.dumps(line, ensure_ascii=False) for line in self.lines)
        path.write_text("\n".join([*rows, ""]), encoding="utf-8")


def read_profiled(
    folder: Path, profiles: Path, *, now: datetime, expected: ExpectedCounts | None = BASE_COUNTS
) -> Profiled:
    """Read MovieLens 100K from `folder` and the profiles from a CSV file; `expected` of None checks no counts.

    Raises:
        DataSetError: a file is missing, edited or malformed, or a profile is of a user or of chunks that `u1.base` has
            not.
        InvalidBehaviors: ratings that break the behavior schema.
    """
    base = the_file(folder, BASE)
    parsed = read_100k(folder, expected=None)
    files = {**parsed.files, "behaviors": str(base)}
    source = replace(
        parsed, name="ml-100k-u1", behaviors=read_ratings(base, delimiter="\t"), files=files, expected=expected
    )
    data_set = make_data_set(source, now=now)
    return Profiled(
        data_set=data_set,
        test=read_ratings(the_file(folder, TEST), delimiter="\t"),
        lines=tuple(_lines(profiles, chunks=_chunks(data_set.behaviors))),
    )


def _chunks(behaviors: pa.Table) -> dict[str, list[list[str]]]:
    """Return the items of each user's chunks, the newest first; of ratings at one time, in the order of their items."""
    users, items = (behaviors[name].to_numpy(zero_copy_only=False).astype(str) for name in (USER, ITEM))
    times = behaviors[EVENT_TIME].cast(TIMESTAMP).cast(pa.int64()).to_numpy()
    newest_first = np.lexsort((items.astype(np.int64), -times, users))
    starts = np.flatnonzero(np.r_[True, users[newest_first][1:] != users[newest_first][:-1]])
    found = {}
    for rows in np.split(newest_first, starts[1:]):
        read = items[rows[:READ]].tolist()
        found[str(users[rows[0]])] = [read[left : left + CHUNK] for left in range(0, len(read), CHUNK)]
    return found


def _lines(path: Path, *, chunks: Mapping[str, Sequence[Sequence[str]]]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number, row in enumerate(_rows(path), 1):
        where, user_id = f"{path}, row {number}", str(row[USER_COLUMN])
        if not row[SERIES]:
            continue
        if user_id in seen:
            raise DataSetError(f"{where}: user {user_id!r} has a profile twice. Get the original file again.")
        seen.add(user_id)
        series, changes = (_series(row[name], where=f"{where}, {name}") for name in (SERIES, CHANGES))
        known = chunks.get(user_id, ())
        if len(series) != len(changes) or not len(series) <= len(known):
            raise DataSetError(
                f"{where}: user {user_id!r} has {len(series)} profiles and {len(changes)} changes, and {BASE} has"
                f" {len(known)} chunks of theirs. Get the original files again."
            )
        for index, items in enumerate(known[: len(series)]):
            yield {
                "user_id": user_id,
                "partition_index": index,
                "summary": series[index],
                "shift": changes[index] if index else None,
                "item_ids": list(items),
            }


def _rows(path: Path) -> list[dict[str, str]]:
    with reading(path, expected=f"a CSV file with {USER_COLUMN}, {SERIES} and {CHANGES}"):
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise DataSetError(f"{path}, line {reader.line_num}: {error}. Get the original file again.") from error
    missing = [name for name in (USER_COLUMN, SERIES, CHANGES) if name not in (reader.fieldnames or ())]
    if missing:
        raise DataSetError(f"{path}: column {missing[0]!r} is missing. Get the original file again.")
    if any(None in row or None in row.values() for row in rows):
        raise DataSetError(f"{path}: a row has more or fewer values than the header. Get the original file again.")
    return rows


def _series(literal: str, *, where: str) -> list[str]:
    """Return the texts of a Python dictionary `{'chunk_1': ..., 'chunk_2': ...}`, in this order."""
    try:
        found = ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise DataSetError(f"{where}: no dictionary of chunks. Get the original file again.") from error
    names = [f"chunk_{number}" for number in range(1, len(found) + 1)] if isinstance(found, dict) else []
    if not names or list(found) != names or not all(isinstance(text, str) for text in found.values()):
        raise DataSetError(f"{where}: found no texts of chunk_1, chunk_2 and so on. Get the original file again.")
    return list(found.values())
