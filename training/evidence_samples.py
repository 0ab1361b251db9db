"""What the stages `item_text` and `evidence` published, as training reads it: each sample's rows, no lists."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.behavior import CREATED_TIME, EVENT_TIME, ITEM, USER
from liber_feast.errors import DataSetError, StoreNotReady
from liber_feast.evidence_rows import (
    ITEM_VECTOR,
    MEMORY_COUNT,
    MEMORY_EVIDENCE,
    MEMORY_LIKE_RATE,
    TableRows,
    UserEvidence,
    read_rows,
)
from liber_feast.fields import column, floats, strings
from liber_feast.offline_read import microsecond_values
from liber_feast.pit import as_of, key_codes
from liber_feast.ragged import Ragged

VERSION, PARTITION, COUNT = "encoder_version", "evidence", "behavior_count"
PUBLISH = "Run `feast materialize START END` in the feature repo."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemTexts:
    """The published vectors of items, of one encoder."""

    table: pa.Table
    encoder_version: str
    width: int


def item_texts(published: pa.Table) -> ItemTexts:
    """Return the rows of the view `item_text`.

    Raises:
        StoreNotReady: there are none.
        DataSetError: vectors of several encoders or widths, or with a value that is not finite.
    """
    if not published.num_rows:
        raise StoreNotReady(f"item_text holds no vectors. {PUBLISH}")
    newest = published.take(pa.array(_newest(published, key=ITEM)))
    version = _one_version(newest, owner="item_text")
    widths = pc.unique(pc.list_value_length(newest[ITEM_VECTOR])).drop_null().sort().to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise DataSetError(f"item_text holds vectors of the widths {', '.join(map(str, widths)) or 'none'}. {PUBLISH}")
    read_rows(newest, ITEM_VECTOR, width=widths[0])
    return ItemTexts(table=newest, encoder_version=version, width=widths[0])


def with_vectors(catalog: pa.Table, *, texts: ItemTexts) -> pa.Table:
    """Return the versions of items with the column `vector`: of each the last text at or before its time, or null."""
    asked, groups = key_codes([_ids(catalog, ITEM)], [_ids(texts.table, ITEM)])
    found = as_of(groups, _times(texts.table), query_groups=asked, query_times=_times(catalog))
    taken = texts.table[ITEM_VECTOR].combine_chunks().take(pa.array(found, mask=found < 0))
    return catalog.append_column(ITEM_VECTOR, taken)


def evidence_of(samples: pa.Table, *, published: pa.Table, texts: ItemTexts) -> UserEvidence:
    """Return for each sample the evidence over the partitions sealed at or before its time.

    `published` are the rows of the view `partition_evidence`. A partition that was published twice counts as it was
    published last.

    Raises:
        StoreNotReady: no sample sees a partition.
        ConfigError: evidence of another width than the vectors of items, `texts`.
        DataSetError: evidence of another encoder than theirs, or with a value that is not finite.
    """
    table = published.take(pa.array(_newest(published, key=USER)))
    asked, groups = key_codes([_ids(samples, USER)], [_ids(table, USER)])
    rows = as_of(groups, _times(table), query_groups=asked, query_times=_times(samples))
    if not (rows >= 0).any():
        raise StoreNotReady(f"partition_evidence holds no partition for any sample. {PUBLISH}")
    version = _one_version(table, owner="partition_evidence")
    if version != texts.encoder_version:
        raise DataSetError(
            f"partition_evidence is of the encoder {version} and item_text of {texts.encoder_version}, which cannot be"
            f" compared. {PUBLISH}"
        )
    values = read_rows(table, MEMORY_EVIDENCE, width=texts.width).take(np.arange(len(table)))
    like_rates, counts = (floats(column(table, name, kind=pa.float64())) for name in (MEMORY_LIKE_RATE, MEMORY_COUNT))
    if not (np.isfinite(like_rates).all() and np.isfinite(counts).all()):
        raise DataSetError(f"partition_evidence has a like rate or a count that is not a number. {PUBLISH}")
    return UserEvidence(
        evidence=TableRows(values=values, rows=rows),
        like_rates=like_rates,
        behavior_counts=counts,
        partitions=_partitions(table, groups=groups, rows=rows, width=texts.width),
    )


def _partitions(
    table: pa.Table, *, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], width: int
) -> Ragged[np.float32] | None:
    """Return for each sample its user's partitions up to `rows`; `table` is by user and time."""
    if not {PARTITION, COUNT} <= set(table.column_names):
        return None
    evidence = read_rows(table, PARTITION, width=width).take(np.arange(len(table)))
    counts = np.log(np.maximum(floats(column(table, COUNT, kind=pa.float64())), 1)).astype(np.float32)
    first = np.append(True, groups[1:] != groups[:-1])
    starts = np.maximum.accumulate(np.where(first, np.arange(len(table)), 0))
    there = rows >= 0
    return Ragged(
        starts=np.where(there, starts[rows], 0),
        lengths=np.where(there, rows - starts[rows] + 1, 0),
        values=np.concatenate([evidence, counts[:, None]], axis=1),
    )


def _newest(rows: pa.Table, *, key: str) -> npt.NDArray[np.int64]:
    """Return the rows by key and time, of those of one key and time the one created last."""
    codes = pc.rank(_ids(rows, key), tiebreaker="dense").to_numpy().astype(np.int64)
    times = _times(rows)
    order = np.lexsort((_created(rows), times, codes))
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(codes[order]) != 0) | (np.diff(times[order]) != 0)
    return order[last]


def _one_version(rows: pa.Table, *, owner: str) -> str:
    versions = sorted(pc.drop_null(pc.unique(rows[VERSION])).to_pylist())
    if len(versions) != 1:
        raise DataSetError(
            f"{owner} holds vectors of {len(versions)} encoder versions ({', '.join(versions)}), which cannot be"
            f" compared. {PUBLISH}"
        )
    return str(versions[0])


def _ids(rows: pa.Table, name: str) -> pa.Array:
    return strings(rows, name).cast(pa.large_string())


def _times(rows: pa.Table) -> npt.NDArray[np.int64]:
    return microsecond_values(rows[EVENT_TIME], owner="a published view", name=EVENT_TIME)


def _created(rows: pa.Table) -> npt.NDArray[np.int64]:
    if CREATED_TIME not in rows.column_names:
        return np.zeros(len(rows), np.int64)
    return microsecond_values(rows[CREATED_TIME], owner="a published view", name=CREATED_TIME)
