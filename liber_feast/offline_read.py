"""The file sources of feature views: Parquet and Delta, on local disks and S3.

A source is opened once per retrieval, so that what is read of it is one consistent snapshot whoever writes
meanwhile; a Parquet file on a local disk that was exchanged since then is refused. Delta is read through deltalake
itself, its files in the order of their commits: where nothing else tells rows apart, the later row is the one
committed later.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from feast import FileSource, RepoConfig
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.feature_view import FeatureView

from liber_feast.errors import ConfigError, LiberError, RetryableError, StoreNotReady, one_line
from liber_feast.pit import LOWEST, Flags, Ints, rescale

LOAD = "Run `liber load DATA --repo .` in the feature repo, or correct the path of the source"
MATERIALIZE = "Run `feast materialize START END` in the feature repo: it writes this table"
PUBLISHED = frozenset({"summary", "shift", "vector", "fused", "evidence", "item_text"})
STAGE = "liber.stage"
FileState = tuple[int, int, int] | None
_LOCAL_SCAN = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
"""Fetching whole columns ahead is for object stores; from a disk it takes a third more memory and no less time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a source lies and who asks for it, for messages."""

    source: FileSource
    path: str
    owner: str
    remedy: str = LOAD

    @property
    def is_delta(self) -> bool:
        return isinstance(self.source.file_format, DeltaFormat)

    @property
    def storage_options(self) -> dict[str, str]:
        """What deltalake needs beside the path: credentials and endpoint of an object store, else nothing."""
        options = dict(self.source.resolve_credentials() or {})
        if self.source.s3_endpoint_override:
            options["AWS_ENDPOINT_URL"] = self.source.s3_endpoint_override
        return options

    @property
    def is_local(self) -> bool:
        """Whether the source lies on a disk of this machine."""
        return "://" not in self.path or self.path.startswith("file://")

    def filesystem(self) -> tuple[Any, str]:
        """Return (pyarrow file system or None for a local disk, path on it)."""
        pair: tuple[Any, str] = FileSource.create_filesystem_and_path(
            self.path, self.source.s3_endpoint_override or "", self.source.resolve_credentials()
        )
        return pair


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """One consistent state of a source."""

    location: Location
    dataset: ds.Dataset
    converted: frozenset[str] = frozenset()
    """Columns read as another type than their files have; no filter names them, for Arrow compares the files' type."""
    states: Mapping[str, FileState] = field(default_factory=dict)
    """The files that must stay as they were when the source was opened: the local ones of Parquet."""

    def find(self, name: str) -> str | None:
        """Return the source's own name of a column that Feast calls `name`, or None where there is none."""
        mapping = self.location.source.field_mapping or {}
        names = self.dataset.schema.names
        mapped = next((old for old, new in mapping.items() if new == name and old in names), name)
        return mapped if mapped in names else None

    def column(self, name: str) -> str:
        """Return the source's own name of a column that Feast calls `name` (see `require`)."""
        return self.require(self.find(name) or name)

    def require(self, own: str) -> str:
        """Return `own`.

        Raises:
            ConfigError: the source has no such column.
        """
        names = self.dataset.schema.names
        if own not in names:
            raise ConfigError(
                f"{self.location.owner}: column {own!r} is missing in {self.location.path}; found"
                f" {', '.join(names) or 'no columns'}. Write the column, or correct the view and its source."
            )
        return own

    def kind(self, own: str) -> pa.DataType:
        """Return the type of a column by the source's own name."""
        return self.dataset.schema.field(own).type

    def renamed(self, table: pa.Table) -> pa.Table:
        """Return a table of the source's own columns by the names that Feast has for them.

        What the field mapping names hides a column that has this name in the file, as in `find`.
        """
        mapping = self.location.source.field_mapping or {}
        names = {own: mapping.get(own, own) for own in table.column_names}
        kept = [own for own, name in names.items() if self.find(name) == own]
        return table.select(kept).rename_columns([names[own] for own in kept])

    def read(self, names: Sequence[str], *, where: pc.Expression | None = None) -> pa.Table:
        """Return columns by the source's own names, rows in the order they were written.

        Raises:
            ConfigError: a file is damaged or holds a column as another type than the first file.
            StoreNotReady: the source vanished since it was opened.
            RetryableError: some of its files did, or are others now.
        """
        with self.unchanged():
            return self._read(list(dict.fromkeys(names)), where=where)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Read within this block: what was read, or failed, while a file was exchanged is refused at its end.

        Raises:
            RetryableError: a file is another than when the source was opened.
        """
        try:
            yield
        except (LiberError, pa.ArrowException, OSError) as error:
            if not isinstance(error, StoreNotReady | RetryableError):
                self._refuse_exchanged(error)
            raise
        self._refuse_exchanged(None)

    def _refuse_exchanged(self, cause: Exception | None) -> None:
        if any(_state(path) != state for path, state in self.states.items()):
            raise RetryableError(
                f"{self.location.owner}: {self.location.path} was rewritten while it was read; ask again."
            ) from cause

    def _read(self, wanted: list[str], *, where: pc.Expression | None) -> pa.Table:
        try:
            self._check_types(wanted)
            options = _LOCAL_SCAN if self.location.is_local else None
            return self.dataset.to_table(columns=wanted, filter=where, fragment_scan_options=options)
        except FileNotFoundError as error:
            raise self._vanished(error) from error
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
            self._check_types(wanted, exactly=True)
            raise ConfigError(
                f"{self.location.owner}: {self.location.path} cannot be read: {one_line(error)}."
            ) from error

    def _vanished(self, error: FileNotFoundError) -> LiberError:
        try:
            open_snapshot(self.location)
        except StoreNotReady as gone:
            return gone
        return RetryableError(
            f"{self.location.owner}: {self.location.path} was vacuumed or rewritten while it was read; ask again. If it"
            f" fails again, a file of it was deleted by hand: {one_line(error)}."
        )

    def _check_types(self, names: Sequence[str], *, exactly: bool = False) -> None:
        """Refuse a column that has another kind of type in a later file, with `exactly` another type at all."""
        if self.location.is_delta or len(self.dataset.files) == 1:  # a Delta table has one schema
            return
        same = _readable if exactly else _family
        for fragment in self.dataset.get_fragments():
            for found in fragment.physical_schema:
                if found.name in names and same(found.type) != same(self.kind(found.name)):
                    raise ConfigError(
                        f"{self.location.owner}: column {found.name!r} has type {found.type} in {fragment.path} but"
                        f" {self.kind(found.name)} in the files before it. Rewrite the files with one type."
                    )


def locate(source: DataSource | None, *, config: RepoConfig, view: FeatureView | None = None) -> Location:
    """Return where `source` lies; relative paths are relative to the feature repo.

    Raises:
        ConfigError: the source is not a FileSource.
    """
    owner = f"feature view {view.name!r}" if view else f"data source {getattr(source, 'name', None)!r}"
    if not isinstance(source, FileSource):
        raise ConfigError(
            f"{owner}: its batch source is {type(source).__name__}; the store reads FileSource (Parquet, Delta)."
        )
    stage = view.tags.get(STAGE) if view else None
    path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    return Location(source=source, path=str(path), owner=owner, remedy=MATERIALIZE if stage in PUBLISHED else LOAD)


def open_snapshot(location: Location) -> Snapshot:
    """Open a source.

    Raises:
        StoreNotReady: nothing is there; the message says what to run.
        ConfigError: what is there cannot be read.
    """
    try:
        return _delta(location) if location.is_delta else _parquet(location)
    except (FileNotFoundError, TableNotFoundError) as error:
        raise not_ready(location) from error
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise ConfigError(f"{location.owner}: {location.path} cannot be read: {one_line(error)}.") from error


def not_ready(location: Location) -> StoreNotReady:
    """Return the error for a source that is not there."""
    kind = "Delta table" if location.is_delta else "Parquet file"
    return StoreNotReady(f"{location.owner}: there is no {kind} at {location.path}. {location.remedy}.")


def feast_types(schema: pa.Schema) -> Iterable[tuple[str, str]]:
    """Return column names and types as texts that Feast understands, Delta's list elements included."""
    return [(field.name, str(_plain(field.type))) for field in schema]


def time_values(column: pa.ChunkedArray, *, owner: str, name: str) -> tuple[Ints, str, Flags]:
    """Return a timestamp or date column as (values, unit, where a value is); naive times are UTC.

    Raises:
        ConfigError: the column is of another type, or has a date that no time can hold.
    """
    kind = column.type
    if pa.types.is_date(kind):
        column, kind = _midnights(column, owner=owner, name=name), pa.timestamp("us")
    if not pa.types.is_timestamp(kind):
        raise ConfigError(
            f"{owner}: column {name!r} has type {kind}; it must be a timestamp."
            " Parse texts and unix seconds first, for example with pandas.to_datetime(..., utc=True)."
        )
    values: Ints = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    known: Flags = column.is_valid().to_numpy()
    return values, str(kind.unit), known


def _midnights(dates: pa.ChunkedArray, *, owner: str, name: str) -> pa.ChunkedArray:
    try:
        return dates.cast(pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{owner}: column {name!r} has a date that no time can hold: {one_line(error)}.") from error


def microsecond_values(column: pa.ChunkedArray, *, owner: str, name: str) -> Ints:
    """Return a timestamp or date column in microseconds, LOWEST where there is no value; raises as `time_values`."""
    values, unit, known = time_values(column, owner=owner, name=name)
    return np.where(known, rescale(values, source=unit, target="us"), LOWEST)


def between(name: str, kind: pa.DataType, *, low: int | None, high: int | None, unit: str) -> pc.Expression | None:
    """Return the filter low <= column <= high, or None where the bounds are open or the column is no time.

    A date is its midnight UTC, as in `time_values`.
    """
    column = pc.field(name)
    if pa.types.is_date(kind):
        kind = pa.timestamp("us")
        column = column.cast(kind)
    if not pa.types.is_timestamp(kind):
        return None
    parts = []
    if low is not None:
        floor = rescale(np.array([low]), source=unit, target=kind.unit, up=True)[0]
        parts.append(column >= pa.scalar(int(floor), kind))
    if high is not None:
        ceiling = rescale(np.array([high]), source=unit, target=kind.unit)[0]
        parts.append(column <= pa.scalar(int(ceiling), kind))
    return parts[0] & parts[-1] if parts else None


def _parquet(location: Location) -> Snapshot:
    filesystem, path = location.filesystem()
    if filesystem is None and any(sign in path for sign in "*?["):
        found, base = sorted(glob.glob(path, recursive=True)), None
    else:
        found, base = _files(path, filesystem=filesystem or pa.fs.LocalFileSystem()), path
    if not found:
        raise FileNotFoundError(path)
    # Taken before the first file is looked into, so that no state of it can be read unnoticed.
    states = {file: _state(file) for file in found} if filesystem is None else {}

    def opened(schema: pa.Schema | None = None) -> ds.Dataset:
        return ds.dataset(
            found, schema=schema, format="parquet", filesystem=filesystem, partitioning="hive", partition_base_dir=base
        )

    dataset = opened()
    readable = pa.schema([field.with_type(_readable(field.type)) for field in dataset.schema])
    converted = frozenset(new.name for old, new in zip(dataset.schema, readable, strict=True) if old.type != new.type)
    dataset = opened(readable) if converted else dataset
    return Snapshot(location=location, dataset=dataset, converted=converted, states=states)


def _state(path: str) -> FileState:
    """Return what differs when a file was written again, None where it is gone or out of reach."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _files(path: str, *, filesystem: pa.fs.FileSystem) -> list[str]:
    """Return the files of a folder in the order of their names, or the one file.

    What starts with a dot or an underscore is no data, but a partition's folder may: Feast logs by `__log_date`.
    """
    if filesystem.get_file_info(path).type != pa.fs.FileType.Directory:
        return [path]
    found = [info.path for info in filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True)) if info.is_file]
    parts = [(file, file[len(path) :].strip("/").split("/")) for file in found]
    return sorted(file for file, names in parts if not any(one[0] in "._" and "=" not in one for one in names))


def _delta(location: Location) -> Snapshot:
    table = DeltaTable(location.path, storage_options=location.storage_options or None)
    dataset = table.to_pyarrow_dataset()
    actions = pa.table(table.get_add_actions(flatten=True))
    times = dict(zip(actions["path"].to_pylist(), actions["modification_time"].to_pylist(), strict=True))
    committed = {unquote(path): time for path, time in times.items()}
    # deltalake lists the newest commit first.
    fragments = sorted(reversed(list(dataset.get_fragments())), key=lambda fragment: committed[fragment.path])
    ordered = ds.FileSystemDataset(fragments, dataset.schema, dataset.format, dataset.filesystem)
    return Snapshot(location=location, dataset=ordered)


def _readable(kind: pa.DataType) -> pa.DataType:
    """Return a type as a scan can filter and take it: views on texts, bytes and lists become these themselves."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_readable(field.type)) for field in kind])
    for test, make in ((pa.types.is_list_view, pa.list_), (pa.types.is_list, pa.list_), (_is_large, pa.large_list)):
        if test(kind):
            return make(kind.value_field.with_type(_readable(kind.value_type)))
    return kind


def _is_large(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_large_list, pa.types.is_large_list_view))


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    return kind


def _family(kind: pa.DataType) -> str:
    kind = _plain(_readable(kind))
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp)
    found = next((test.__name__ for test in tests if test(kind)), str(kind))
    return found.removeprefix("large_")
