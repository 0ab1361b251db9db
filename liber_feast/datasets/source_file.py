"""Files of a data set: finding them, reading delimited text, unix times; every failure names the file in one line."""

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from liber_feast.behavior import EVENT_TIME, TIMESTAMP
from liber_feast.errors import DataSetError, InvalidBehaviors

MESSAGE_LENGTH = 300
YEAR_1995, YEAR_10000 = 788_918_400, 253_402_300_800
"""Unix seconds at which the years began; no data set is older than the first."""


def find_file(folder: Path, name: str) -> Path | None:
    """Return `folder/name` or its gzip `folder/name.gz`, the first that is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def the_file(folder: Path, name: str) -> Path:
    """Return `find_file`, or raise `DataSetError`: it is missing beside the others."""
    path = find_file(folder, name)
    if path is None:
        raise DataSetError(f"{folder / name}: this file of the data set is missing. Get the whole data set again.")
    return path


@contextmanager
def reading(path: Path, *, expected: str) -> Iterator[None]:
    """Turn what fails while `path` is read into a `DataSetError` that says what was expected in it."""
    try:
        if path.stat().st_size == 0:
            raise DataSetError(f"{path}: found an empty file, expected {expected}. Get the data set again.")
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException) as error:
        found = re.sub(r"\s+", " ", str(error)).strip().rstrip(".")
        if len(found) > MESSAGE_LENGTH:
            found = found[:MESSAGE_LENGTH] + " ..."
        raise DataSetError(f"{path}: {found}. Expected {expected}; get the original file again.") from error


def read_delimited(
    path: Path, *, columns: Mapping[str, pa.DataType], delimiter: str, header: bool = False, encoding: str = "utf8"
) -> pa.Table:
    """Read a text file, plain or gzip, LF or CRLF, whose columns are `columns` (with `header`: in any order).

    A delimiter of several characters is replaced by one before parsing. Without `header` quotes are plain text.

    Raises:
        DataSetError: an unreadable, truncated or empty file, a missing or unknown column, a value of another type.
    """
    shown = {"\t": "tab", ",": "comma"}.get(delimiter, delimiter)
    expected = f"{'a header line and ' if header else ''}{shown} separated {', '.join(columns)}"
    with reading(path, expected=expected):
        stream: pa.NativeFile = pa.input_stream(str(path))
        if len(delimiter) > 1:
            stream = pa.BufferReader(stream.read().replace(delimiter.encode(), b"\x1f"))
        table = csv.read_csv(
            stream,
            read_options=csv.ReadOptions(
                column_names=None if header else list(columns), encoding=encoding, use_threads=False
            ),
            parse_options=csv.ParseOptions(
                delimiter="\x1f" if len(delimiter) > 1 else delimiter, quote_char='"' if header else False
            ),
            convert_options=csv.ConvertOptions(column_types=dict(columns)),
        )
    if header:
        check_columns(table.column_names, expected=list(columns), path=path)
    if not len(table):
        raise DataSetError(f"{path}: found no rows, expected {expected}. Get the data set again.")
    return table.select(list(columns)).combine_chunks()


def check_columns(found: list[str], *, expected: list[str], path: Path, others: bool = False) -> None:
    """Raise `DataSetError` naming the first column that is missing, repeated or (unless `others`) unknown."""
    listed = f"found {', '.join(found)}; expected {', '.join(expected)}. Get the original file again."
    for name in expected:
        if name not in found:
            raise DataSetError(f"{path}: column {name!r} is missing: {listed}")
        if found.count(name) > 1:
            raise DataSetError(f"{path}: column {name!r} is there {found.count(name)} times: {listed}")
    unknown = [name for name in found if name not in expected]
    if unknown and not others:
        raise DataSetError(f"{path}: column {unknown[0]!r} is unknown: {listed}")


def unix_times(column: pa.ChunkedArray | pa.Array, *, path: Path, earliest: int, unit: str = "s") -> pa.Array:
    """Return integer unix times of `unit` ('s' or 'ms') as microseconds UTC; nulls stay null.

    `earliest` is the unix second at which the data set began; times before it, like times past the year 9999,
    are a wrong unit or a cut-off number.

    Raises:
        InvalidBehaviors: such a time.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    per_second = {"s": 1, "ms": 1000}[unit]
    low, high = earliest * per_second, YEAR_10000 * per_second
    bad = pc.fill_null(pc.or_(pc.less(array, low), pc.greater_equal(array, high)), False)
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise InvalidBehaviors(
            f"{path}: column {EVENT_TIME!r} has impossible times in {pc.sum(bad).as_py()} rows, first"
            f" {array[row].as_py()} in row {row}, expected unix {'seconds' if unit == 's' else 'milliseconds'} from"
            f" {low}. Is the unit right, is the number cut off? Get the original file again.",
            column=EVENT_TIME,
            row_count=pc.sum(bad).as_py(),
        )
    return array.cast(pa.timestamp(unit, tz="UTC")).cast(TIMESTAMP)
