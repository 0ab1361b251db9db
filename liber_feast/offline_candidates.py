"""Source rows of one feature view that the entity rows could use, as integers ready to be joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_view import FeatureView

from liber_feast.gather import one_array
from liber_feast.offline_entities import EntityRows, JoinKey, comparable, join_keys
from liber_feast.offline_read import Snapshot, between, time_values
from liber_feast.pit import LOWEST, Flags, Ints, finer, key_codes, rescale

KEY_FILTER_LIMIT = 256
"""With no more distinct entity keys than this, only their rows are read of a source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewRequest:
    """A feature view and which of its features are wanted."""

    view: FeatureView
    features: tuple[str, ...]
    cut_by_created: bool = False
    """Whether a row counts only from its created time on (`filter_by_created_timestamp`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """Candidate rows in the order of their source, and the entity rows as queries over them.

    The arrays run over the candidates; `places` are their rows in `table`, whose columns stay as they were read.
    """

    rows: EntityRows
    table: pa.Table
    places: Ints
    groups: Ints
    times: Ints
    unit: str
    created: Ints | None
    created_unit: str
    query_groups: Ints

    def take(self, own: str) -> pa.Array:
        """Return a column's values of the candidates, by the source's own name."""
        return one_array(self.table.column(own)).take(pa.array(self.places))

    def table_rows(self, positions: Ints) -> Ints:
        """Return the rows in `table` of candidates by position; NO_ROW stays."""
        return np.where(positions >= 0, self.places[positions], positions) if len(self.places) else positions

    def queries(self, unit: str) -> Ints:
        """Return the entity rows' times in `unit`; floored to a coarser one, "at or before" means the same."""
        return rescale(self.rows.times, source=self.rows.unit, target=unit)

    def visibility(self, *, strict: bool, cut_by_created: bool) -> tuple[Ints, Ints]:
        """Return the time from which each candidate is visible and the query times, in one unit.

        With `strict` a row is visible only after its own time; with `cut_by_created` not before it was created.
        """
        unit = finer(self.unit, self.rows.unit)
        if not cut_by_created or self.created is None:
            return rescale(self.times, source=self.unit, target=unit) + strict, self.queries(unit)
        unit = finer(unit, self.created_unit)
        seen = rescale(self.times, source=self.unit, target=unit) + strict
        return np.maximum(seen, rescale(self.created, source=self.created_unit, target=unit)), self.queries(unit)

    def expired(self, positions: Ints, *, ttl: timedelta | None) -> Flags:
        """Return where the candidate at a position is older than the view's time to live allows."""
        if not ttl or not len(self.times):
            return np.zeros(len(positions), bool)
        unit = finer(self.unit, self.rows.unit)
        age = rescale(np.array([ttl // timedelta(microseconds=1)]), source="us", target=unit)[0]
        oldest = np.maximum(self.queries(unit), LOWEST + age) - age
        times = rescale(self.times, source=self.unit, target=unit)
        old: Flags = (positions >= 0) & (times[positions] < oldest)
        return old


def find_candidates(
    request: ViewRequest,
    *,
    rows: EntityRows,
    snapshot: Snapshot,
    columns: Sequence[str],
    lookback: timedelta | None = None,
    filled: str | None = None,
) -> Candidates:
    """Read what may match: rows of the entity rows' keys, not later than the last of their times.

    `columns` (by the source's own names) are read too, `filled` is null in no candidate, and no candidate lies further
    than `lookback` before the first entity row (None or zero: any may).
    """
    source = snapshot.location.source
    moments = [snapshot.column(name) for name in (source.timestamp_field, source.created_timestamp_column) if name]
    keys = [(key, snapshot.column(key.view_name)) for key in join_keys(request.view)]
    where = _worthwhile(rows, snapshot=snapshot, time=moments[0], keys=keys, lookback=lookback)
    table = snapshot.read([*moments, *(own for _, own in keys), *columns], where=where)
    values = [time_values(table.column(name), owner=snapshot.location.owner, name=name) for name in moments]
    (times, unit, known), (made, made_unit, has_made) = values[0], values[-1]
    query_groups, groups = _groups(request, rows=rows, table=table, keys=keys)
    keep = known & (groups >= 0)
    if request.cut_by_created:
        keep &= has_made
    if filled:
        keep &= table.column(filled).is_valid().to_numpy()
    places = np.flatnonzero(keep)
    return Candidates(
        rows=rows,
        table=table,
        places=places,
        groups=groups[places],
        times=times[places],
        unit=unit,
        created=np.where(has_made, made, LOWEST)[places] if len(moments) > 1 else None,
        created_unit=made_unit,
        query_groups=np.where(rows.known, query_groups, -1),
    )


def _groups(
    request: ViewRequest, *, rows: EntityRows, table: pa.Table, keys: Sequence[tuple[JoinKey, str]]
) -> tuple[Ints, Ints]:
    if not keys:
        return np.zeros(rows.table.num_rows, np.int64), np.zeros(table.num_rows, np.int64)
    pairs = [
        comparable(rows.key(key.frame_name), one_array(table.column(own)), view=request.view.name, key=key)
        for key, own in keys
    ]
    return key_codes([frame for frame, _ in pairs], [source for _, source in pairs])


def _worthwhile(
    rows: EntityRows,
    *,
    snapshot: Snapshot,
    time: str,
    keys: Sequence[tuple[JoinKey, str]],
    lookback: timedelta | None,
) -> pc.Expression | None:
    """Return a filter that leaves out rows which cannot match; it need not leave out all of them."""
    known = rows.times[rows.known]
    if not len(known):
        return pc.scalar(False)
    low = None
    if lookback:
        age = rescale(np.array([lookback // timedelta(microseconds=1)]), source="us", target=rows.unit)[0]
        low = max(int(known.min()) - int(age), LOWEST + 1)
    parts = [between(time, snapshot.kind(time), low=low, high=int(known.max()), unit=rows.unit)]
    for key, own in keys:
        wanted, kind = rows.key(key.frame_name), snapshot.kind(own)
        plain = (pa.types.is_string(kind) or pa.types.is_integer(kind)) and own not in snapshot.converted
        if wanted.type == kind and plain:
            distinct = pc.drop_null(pc.unique(wanted))
            parts.append(pc.field(own).isin(distinct) if len(distinct) <= KEY_FILTER_LIMIT else None)
    found = [part for part in parts if part is not None]
    where = found[0] if found else None
    for part in found[1:]:
        where = where & part
    return where
