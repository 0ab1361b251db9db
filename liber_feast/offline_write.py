"""Write Arrow tables where file sources lie: append to Delta or Parquet, save a data set, log features.

A local Parquet file is written beside its place and then moved there, so that a reader sees the old rows or the new
ones and an interrupted write leaves the old ones.
"""

import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from feast.errors import SavedDatasetLocationAlreadyExists

from liber_feast.errors import ConfigError, one_line
from liber_feast.offline_read import Location, open_snapshot

DELTA_UNITS = {"s", "ms", "ns"}
"""Time units that Delta does not have; such columns become microseconds."""


def append(table: pa.Table, *, location: Location) -> None:
    """Append rows to a source after the rows it has.

    Raises:
        StoreNotReady: there is no source yet.
        ConfigError: the rows have other columns than the source, or values that do not fit its types.
    """
    snapshot = open_snapshot(location)
    rows = _fit(table, schema=snapshot.dataset.schema, location=location)
    if location.is_delta:
        write_deltalake(location.path, rows, mode="append", storage_options=location.storage_options or None)
        return
    filesystem, path = location.filesystem()
    if filesystem is None and Path(path).is_dir():
        _replace(rows, path=str(Path(path) / _next_name(path, last=snapshot.dataset.files[-1])), filesystem=None)
        return
    earlier = snapshot.read(snapshot.dataset.schema.names)
    _replace(pa.concat_tables([earlier, rows]), path=path, filesystem=filesystem)


def save(table: pa.Table, *, location: Location, overwrite: bool) -> None:
    """Write a table to a place of its own; a path that does not end in .parquet becomes a folder of files.

    Raises:
        SavedDatasetLocationAlreadyExists: there is something and `overwrite` is not set.
    """
    if not overwrite and _exists(location):
        raise SavedDatasetLocationAlreadyExists(location=location.source.path)
    filesystem, path = location.filesystem()
    if location.is_delta:
        options = location.storage_options or None
        mode = "overwrite" if overwrite else "error"
        schema_mode = "overwrite" if overwrite and DeltaTable.is_deltatable(location.path, options) else None
        write_deltalake(location.path, _delta_times(table), mode=mode, schema_mode=schema_mode, storage_options=options)  # type: ignore[call-overload]  # the stubs list each mode apart
    elif path.endswith(".parquet"):
        if filesystem is None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        _replace(table, path=path, filesystem=filesystem)
    else:
        _replace_folder(table, path=path, filesystem=filesystem)


def add_files(table: pa.Table, *, location: Location, partition_by: Sequence[str] | None) -> None:
    """Add a table as further Parquet files to a folder, in folders by `partition_by` where that is given."""
    filesystem, path = location.filesystem()
    ds.write_dataset(
        table,
        path,
        format="parquet",
        filesystem=filesystem,
        partitioning=list(partition_by) if partition_by else None,
        partitioning_flavor="hive" if partition_by else None,
        basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
        existing_data_behavior="overwrite_or_ignore",
    )


def _exists(location: Location) -> bool:
    filesystem, path = location.filesystem()
    if filesystem is None:
        return Path(path).exists()
    return bool(filesystem.get_file_info(path).type != pa.fs.FileType.NotFound)


def _replace(table: pa.Table, *, path: str, filesystem: Any) -> None:
    if filesystem is not None:
        pq.write_table(table, path, filesystem=filesystem)
        return
    beside = Path(path).with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        pq.write_table(table, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _next_name(folder: str, *, last: str) -> str:
    """Return a name that comes after the last file of a folder: its files are read in the order of their names."""
    stem = Path(last).relative_to(folder).parts[0].removesuffix(".parquet")
    before, _, count = stem.rpartition("~")
    return f"{before if count.isdigit() and before else stem}~{time.time_ns()}.parquet"


def _replace_folder(table: pa.Table, *, path: str, filesystem: Any) -> None:
    """Leave one file in a folder, for an empty table too: it has the columns."""
    files = filesystem or pa.fs.LocalFileSystem()
    files.create_dir(path, recursive=True)
    earlier = [info.path for info in files.get_file_info(pa.fs.FileSelector(path, recursive=True)) if info.is_file]
    place = f"{path.rstrip('/')}/part-0.parquet"
    _replace(table, path=place, filesystem=filesystem)
    for file in earlier:
        if file != place:
            files.delete_file(file)


def _fit(table: pa.Table, *, schema: pa.Schema, location: Location) -> pa.Table:
    missing = sorted(set(schema.names) - set(table.column_names))
    unknown = sorted(set(table.column_names) - set(schema.names))
    if missing or unknown:
        raise ConfigError(
            f"{location.owner}: the rows to write do not have the columns of {location.path};"
            f" missing {', '.join(missing) or 'none'}, unknown {', '.join(unknown) or 'none'}."
        )
    columns = []
    for field in schema:
        try:
            columns.append(fitted(table.column(field.name), field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(
                f"{location.owner}: column {field.name!r} to write has type {table.schema.field(field.name).type}; it"
                f" does not fit {field.type} of {location.path}: {one_line(error)}."
            ) from error
    return pa.table(columns, schema=schema)


def fitted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column as a source of this type has it; times are cut to its unit.

    Raises:
        pa.ArrowInvalid, pa.ArrowNotImplementedError: a value does not fit.
    """
    return _aware(column, kind).cast(kind, safe=not pa.types.is_timestamp(kind))


def _aware(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Naive times are UTC."""
    if pa.types.is_timestamp(kind) and pa.types.is_timestamp(column.type) and kind.tz and not column.type.tz:
        return column.cast(pa.timestamp(column.type.unit, tz="UTC"))
    return column


def _delta_times(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit in DELTA_UNITS:
            kind = pa.timestamp("us", tz=field.type.tz)
            table = table.set_column(place, field.name, table.column(place).cast(kind, safe=False))
    return table
