"""Write a data set into a feature repo: three Delta tables and dataset.json, all of it or nothing."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError

from liber_feast.abandoned import remove_abandoned
from liber_feast.behavior import EVENT_TIME, ITEM, RATING, REQUIRED, TIMESTAMP, USER
from liber_feast.datasets.data_set import DataSet, first_day
from liber_feast.errors import ConfigError, DataSetError

TABLES = ("behaviors", "items", "users")
DESCRIPTION = "dataset.json"
LOADING_PREFIX = ".loading-"
STORED_TYPES = (pa.string(), pa.list_(pa.string()), pa.int64(), pa.float64(), TIMESTAMP)
"""The column types of a written table; all of them are types of Delta and of Feast."""


def write_data_set(data_set: DataSet, repo: Path) -> None:
    """Write `data_set` to data/behaviors, data/items, data/users and data/dataset.json below `repo`.

    data/behaviors has the columns user_id, item_id, rating and event_timestamp: a pushed frame must have exactly the
    columns of the log, and the behavior ids follow from them.

    All is written beside the tables first and then put in their place by renames, so a failed write leaves the
    tables as they were. dataset.json is taken away before the first rename and put back after the last: a repo
    without it was never loaded, or was interrupted while loading.

    Raises:
        ConfigError: `repo` is no feature repo (it has no feature_store.yaml).
        DataSetError: a column of a type that is not stored, or the disk or Delta refused the write.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise ConfigError(
            f"{repo}: found no feature_store.yaml, so this is no feature repo. Name its folder with --repo."
        )
    data = repo / "data"
    loading = data / f"{LOADING_PREFIX}{os.getpid()}"
    try:
        data.mkdir(exist_ok=True)
        remove_abandoned(data, prefix=LOADING_PREFIX)
        loading.mkdir()
        _write(data_set, loading)
        _swap(loading, data)
    except (DeltaError, OSError) as error:
        found = " ".join(str(error).split())
        raise DataSetError(
            f"{data}: could not write {data_set.name}: {found}. The tables are as they were; load again."
        ) from error
    finally:
        shutil.rmtree(loading, ignore_errors=True)  # what is left of it the next load removes


def describe(data_set: DataSet) -> dict[str, object]:
    """Return what dataset.json says; `start` and `end` are the arguments of `feast materialize` over the whole set.

    Two data sets with one `fingerprint` have the same behaviors.
    """
    bounds = pc.min_max(data_set.behaviors[EVENT_TIME]).as_py()
    first, last = (bounds[name].astimezone(UTC) for name in ("min", "max"))
    end: datetime = last + timedelta(seconds=1)
    if end.microsecond:
        end = end.replace(microsecond=0) + timedelta(seconds=1)
    return {
        "name": data_set.name,
        "prompt": data_set.prompt,
        "item_text": data_set.item_text,
        "scale": asdict(data_set.scale),
        "counts": dict(data_set.counts),
        "fingerprint": _fingerprint(data_set.behaviors),
        "first_time": first.isoformat(),
        "last_time": last.isoformat(),
        "start": first_day(data_set.behaviors).isoformat(),
        "end": end.isoformat(),
    }


def _fingerprint(behaviors: pa.Table) -> str:
    """Return a hash of who rated what, how and when, in the order of the table."""
    digest = hashlib.sha256()
    for name in (USER, ITEM):
        texts = [chunk.cast(pa.large_binary()) for chunk in behaviors[name].cast(pa.string()).chunks if len(chunk)]
        for lengths in map(pc.binary_length, texts):  # where a text ends is part of what is hashed
            digest.update(lengths.to_numpy().tobytes())
        for chunk in texts:
            _, offsets, characters = chunk.buffers()
            ends = np.frombuffer(offsets, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
            digest.update(memoryview(characters)[slice(*ends)])
    for column in (behaviors[RATING].cast(pa.float64()), behaviors[EVENT_TIME].cast(TIMESTAMP).cast(pa.int64())):
        digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(data_set: DataSet, folder: Path) -> None:
    tables = {"behaviors": data_set.behaviors.select(list(REQUIRED)), "items": data_set.items, "users": data_set.users}
    for name, table in tables.items():
        for column in table.schema:
            if column.type not in STORED_TYPES:  # Delta's own refusal of a type is an exception of no class of its own
                raise DataSetError(
                    f"{data_set.name}: column {column.name!r} of {name} has type {column.type}, expected one of"
                    f" {', '.join(map(str, STORED_TYPES))}. Convert it; nothing was written."
                )
        write_deltalake(str(folder / name), table, mode="overwrite", schema_mode="overwrite")
    (folder / DESCRIPTION).write_text(json.dumps(describe(data_set), indent=2) + "\n", encoding="utf-8")


def _swap(loading: Path, data: Path) -> None:
    """Put every table of `loading` in its place in `data`; on failure take them out and put the old ones back."""
    old = loading / "old"
    old.mkdir()
    moves = [(data / name, old / name) for name in (DESCRIPTION, *TABLES) if (data / name).exists()]
    moves += [(loading / name, data / name) for name in (*TABLES, DESCRIPTION)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
