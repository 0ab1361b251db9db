"""Data sets as three Arrow tables: behaviors, items and users. One file per family of formats."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from liber_feast.datasets import amazon, movielens, synthetic
from liber_feast.datasets.data_set import DataSet, ExpectedCounts, ParsedSource, make_data_set
from liber_feast.datasets.source_file import find_file
from liber_feast.datasets.writer import describe, write_data_set
from liber_feast.errors import DataSetError

__all__ = ["DataSet", "ExpectedCounts", "describe", "read_data_set", "write_data_set"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderFormat:
    """A format that a folder is recognized by: any of `files` is there (also as .gz)."""

    title: str
    files: tuple[str, ...]
    read: Callable[[Path], ParsedSource]


FORMATS = (
    FolderFormat(title="MovieLens 100K", files=movielens.FILES_100K, read=movielens.read_100k),
    FolderFormat(title="MovieLens 1M", files=movielens.FILES_1M, read=movielens.read_1m),
    FolderFormat(title="MovieLens latest", files=movielens.FILES_CSV, read=movielens.read_csv_release),
    FolderFormat(title="Amazon Parquet", files=amazon.FILES_PARQUET, read=amazon.read_parquet_pair),
)


def read_data_set(
    source: str | Path,
    *,
    seed: int = 0,
    users: int | None = None,
    behaviors: int | None = None,
    now: datetime | None = None,
) -> DataSet:
    """Return the data set of `source`: 'synthetic', or a folder, whose format is recognized by its files.

    `users` keeps that many users, those with the earliest first behaviors; of synthetic data it is the number of
    users, and `behaviors` the number of behaviors. `seed` is for synthetic data alone. `now` is the clock that
    times in the future are seen by.

    Raises:
        DataSetError: no such folder, no known format, a file that is missing, empty, cut off, edited or malformed,
            or numbers that the source cannot give.
        InvalidBehaviors: rows that break the behavior schema; the message names the file.
    """
    clock = datetime.now(UTC) if now is None else now
    if str(source) == synthetic.NAME:
        return make_data_set(synthetic.read_synthetic(seed=seed, users=users, behaviors=behaviors), now=clock)
    if behaviors is not None:
        raise DataSetError(
            f"{source}: a number of behaviors is for synthetic data alone. Leave it out, or take a slice by users."
        )
    try:
        folder = Path(source).expanduser()
        read = _reader(folder)
    except (OSError, RuntimeError) as error:  # no permission, an absurd name, the home of nobody
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise DataSetError(
            f"{source}: cannot be looked into: {reason}. Name a data set's folder, or 'synthetic'."
        ) from error
    return make_data_set(read(folder), now=clock, user_limit=users)


def _reader(folder: Path) -> Callable[[Path], ParsedSource]:
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataSetError(f"{folder}: {found}. Name a data set's folder, or 'synthetic'.")
    for known in FORMATS:
        if any(find_file(folder, name) for name in known.files):
            return known.read
    if any(amazon.find_json_pair(folder)):
        return amazon.read_json_pair
    listed = "; ".join(f"{known.title} ({', '.join(known.files)})" for known in FORMATS)
    raise DataSetError(
        f"{folder}: found no data set. Recognized are {listed}; Amazon 2018 (one *{amazon.JSON_SUFFIX} of reviews and"
        f" one {amazon.METADATA_PREFIX}*{amazon.JSON_SUFFIX}); or write 'synthetic' instead of a folder."
    )
