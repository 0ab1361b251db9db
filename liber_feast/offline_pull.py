"""Read the rows of one source within a window of time: all of them, or the latest of every key.

This is what the compute engines, Feast's saved data sets and its feature logs read; views that the plugin computes
see their source's raw columns here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast import RepoConfig
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

from liber_feast.behavior import microseconds
from liber_feast.gather import gather
from liber_feast.offline_read import Snapshot, between, locate, open_snapshot, time_values
from liber_feast.pit import HIGHEST, LOWEST, Ints, as_of

BATCH_ROWS = 65_536
"""Rows of a log read at once."""
_FROM_DISK = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pull:
    """What `pull_latest` and `pull_all` read: columns of one source by their own names, within [start, end]."""

    config: RepoConfig
    source: DataSource
    keys: list[str]
    features: list[str]
    time: str
    created: str | None
    start: datetime | None
    end: datetime | None
    with_null_times: bool = False
    """Whether rows without a time are read too, whatever the window; else they are in no window."""

    def rows(self) -> pa.Table:
        """Return the rows in their written order; times are UTC.

        A view's source without keys gets Feast's dummy key, which its engine asks for. Saved data sets and logs are
        sources without a timestamp field of their own, and stay as they were written.
        """
        snapshot, names, where = self._asked()
        return self._in_utc(snapshot.read(names, where=where))

    def batches(self, *, size: int = BATCH_ROWS) -> Iterator[pa.Table]:
        """Yield the rows as `rows` has them, at most `size` at once: a log may be larger than the machine's memory.

        Rows of one consistent snapshot, whoever writes meanwhile; raises what `rows` raises.
        """
        snapshot, names, where = self._asked()
        snapshot.read(names, where=pc.scalar(False))  # refuses types that differ between files
        scanner = snapshot.dataset.scanner(
            columns=list(dict.fromkeys(names)),
            filter=where,
            batch_size=size,
            batch_readahead=2,
            fragment_readahead=1,
            fragment_scan_options=_FROM_DISK if snapshot.location.is_local else None,
        )
        try:
            with snapshot.unchanged():
                for batch in scanner.to_batches():
                    if batch.num_rows:
                        yield self._in_utc(pa.Table.from_batches([batch]))
        except (pa.ArrowException, OSError):
            snapshot.read(names, where=where)  # says what is wrong with which file
            raise

    def _asked(self) -> tuple[Snapshot, list[str], pc.Expression | None]:
        """Return the source, the columns by its own names and which rows are asked for."""
        snapshot = open_snapshot(locate(self.source, config=self.config))
        names = [*self.keys, *self.features, self.time, *([self.created] if self.created else [])]
        names = [snapshot.require(name) for name in (names if self.features else snapshot.dataset.schema.names)]
        bounds = [None if bound is None else microseconds(bound) for bound in (self.start, self.end)]
        kind = snapshot.kind(snapshot.require(self.time))
        where = between(self.time, kind, low=bounds[0], high=bounds[1], unit="us")
        if where is not None and self.with_null_times:
            where |= pc.field(self.time).is_null()
        return snapshot, names, where

    def _in_utc(self, table: pa.Table) -> pa.Table:
        """Return rows with times in UTC, and with Feast's dummy key where the source has no key of its own."""
        owner = f"data source {self.source.name!r}"
        for name in filter(None, (self.time, self.created)):
            values, unit, known = time_values(table.column(name), owner=owner, name=name)
            aware = pa.array(values, pa.timestamp(unit, tz="UTC"), mask=~known)
            table = table.set_column(table.column_names.index(name), name, aware)
        if not self.keys and self.source.timestamp_field:
            table = table.append_column(DUMMY_ENTITY_ID, pa.array([DUMMY_ENTITY_VAL] * table.num_rows, pa.string()))
        return table

    def latest(self) -> pa.Table:
        """Return of each key the row with the greatest (time, created, place), by first appearance of the key."""
        table = self.rows()
        keys = self.keys or [DUMMY_ENTITY_ID]
        indexed = table.select(keys).append_column("row", pa.array(np.arange(table.num_rows)))
        groups = np.zeros(table.num_rows, np.int64)
        firsts = indexed.group_by(keys, use_threads=False).aggregate([("row", "list"), ("row", "count")])
        members = pc.list_flatten(firsts.column("row_list")).to_numpy()
        groups[members] = np.repeat(np.arange(firsts.num_rows), firsts.column("row_count").to_numpy())
        times, created = (_ranks(table.column(name)) for name in (self.time, self.created or self.time))
        last = np.full(firsts.num_rows, HIGHEST)
        found = as_of(groups, times, query_groups=np.arange(firsts.num_rows), query_times=last, created=created)
        return pa.table({name: gather(table.column(name), found) for name in table.column_names})


def _ranks(column: pa.ChunkedArray) -> Ints:
    ranks: Ints = pc.fill_null(column.cast(pa.int64()), LOWEST).to_numpy()
    return ranks
