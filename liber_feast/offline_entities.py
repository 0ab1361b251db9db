"""The entity frame: its event times, its keys, and how both meet a feature view's source."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView

from liber_feast.behavior import EVENT_TIME, microseconds
from liber_feast.errors import ConfigError
from liber_feast.gather import one_array
from liber_feast.offline_read import Snapshot, between, time_values
from liber_feast.pit import Flags, Ints, finer, rescale

FRAME = "entity frame"
EntityFrame: TypeAlias = pd.DataFrame | pa.Table | pa.RecordBatch
FIRST_TIME, LAST_TIME = (microseconds(end.replace(tzinfo=UTC)) for end in (datetime.min, datetime.max))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EntityRows:
    """The rows that features are joined to; their number and order are those of the result."""

    table: pa.Table
    time_column: str
    times: Ints
    unit: str
    """The unit of `times`: us or ns."""
    known: Flags
    """Where the event time is not null; other rows match nothing."""
    keys: dict[str, pa.Array] = field(default_factory=dict)

    def key(self, name: str) -> pa.Array:
        """Return a key column as one array."""
        if name not in self.keys:
            self.keys[name] = one_array(self.table.column(name))
        return self.keys[name]

    @property
    def time_range(self) -> tuple[datetime, datetime]:
        """The first and the last event time, aware; the epoch where there is none, for Feast saves no data set else."""
        known = rescale(self.times[self.known], source=self.unit, target="us")
        ends = [int(known.min()), int(known.max())] if len(known) else [0, 0]
        first, last = pa.array(ends, pa.timestamp("us", tz="UTC")).to_pylist()
        return first.astimezone(UTC), last.astimezone(UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinKey:
    """A key by its name in the feature view and in the entity frame (they differ under a join-key map)."""

    view_name: str
    frame_name: str


def join_keys(view: FeatureView) -> list[JoinKey]:
    """Return what a view is joined on; nothing for a view without entities."""
    names = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return [JoinKey(view_name=name, frame_name=view.projection.join_key_map.get(name, name)) for name in names]


def entity_rows(frame: EntityFrame) -> EntityRows:
    """Return an entity frame as Arrow, its event time column in UTC.

    The event time is the column `event_timestamp`, or the only timestamp column there is.

    Raises:
        ConfigError: it is no frame, there is no such column, it is no timestamp or beyond the years of a datetime, or
            a column mixes types or shares its name.
    """
    table = _to_arrow(frame)
    name = _time_column(table)
    column = table.column(name)
    if pa.types.is_null(column.type) or not len(column):  # pandas gives an empty column any type
        column = pa.chunked_array([pa.nulls(len(column), pa.timestamp("us", tz="UTC"))])
    values, unit, known = time_values(column, owner=FRAME, name=name)
    _refuse_far_times(values[known], unit=unit, name=name)
    kind = pa.timestamp(unit, tz="UTC")
    aware = pa.array(values, kind, mask=None if known.all() else ~known)
    inner = finer(unit, "us")
    return EntityRows(
        table=table.set_column(table.column_names.index(name), pa.field(name, kind), aware),
        time_column=name,
        times=rescale(values, source=unit, target=inner),
        unit=inner,
        known=known,
    )


def check_keys(rows: EntityRows, views: Sequence[FeatureView]) -> None:
    """Refuse an entity frame that lacks a key of one of `views`.

    Raises:
        ConfigError: names the view, the missing column and what was found.
    """
    for view in views:
        for key in join_keys(view):
            if key.frame_name not in rows.table.column_names:
                raise ConfigError(
                    f"{FRAME}: column {key.frame_name!r} is missing; feature view {view.name!r} is joined on it."
                    f" Found {', '.join(rows.table.column_names)}."
                )


def comparable(frame_key: pa.Array, source_key: pa.Array, *, view: str, key: JoinKey) -> tuple[pa.Array, pa.Array]:
    """Return both sides of a key in one type.

    Raises:
        ConfigError: one side is text and the other a number, or any other pair that cannot be equal.
    """
    if frame_key.null_count == len(frame_key):  # pandas gives a column without values any type
        return pa.nulls(len(frame_key), pa.int8()), pa.nulls(len(source_key), pa.int8())
    kind = _common(frame_key.type, source_key.type)
    if kind is not None:
        try:
            return frame_key.cast(kind), source_key.cast(kind)
        except pa.ArrowInvalid as error:
            reason = f" ({error})"
    else:
        reason = ""
    raise ConfigError(
        f"{FRAME}: column {key.frame_name!r} has type {frame_key.type}, but feature view {view!r} has"
        f" {key.view_name!r} as {source_key.type}{reason}. Convert one of them so that both are texts or both integers."
    )


def rows_of_window(
    views: Sequence[FeatureView], *, snapshots: Sequence[Snapshot], start: datetime, end: datetime
) -> EntityRows:
    """Return an entity frame of the keys and event times that have feature rows within [start, end].

    Each (keys, event time) is there once, by event time; a key that a view does not have is null. This is the frame
    of a retrieval without one: every feature row of the window is in its result.
    """
    pairs = zip(views, snapshots, strict=True)
    tables = [_window(view, snapshot=snapshot, start=start, end=end) for view, snapshot in pairs]
    unit = "ns" if any(table.schema.field(EVENT_TIME).type.unit == "ns" for table in tables) else "us"
    kind = pa.timestamp(unit, tz="UTC")
    cast = [table.set_column(0, EVENT_TIME, table.column(0).cast(kind)) for table in tables]
    try:
        joined = pa.concat_tables(cast, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ConfigError(
            f"the views {', '.join(v.name for v in views)} have keys of different types: {error}."
        ) from error
    distinct = joined.group_by(joined.column_names, use_threads=False).aggregate([])
    order = np.argsort(distinct.column(EVENT_TIME).cast(pa.int64()).to_numpy(), kind="stable")
    return entity_rows(distinct.take(pa.array(order)).select(joined.column_names))


def _window(view: FeatureView, *, snapshot: Snapshot, start: datetime, end: datetime) -> pa.Table:
    owner = snapshot.location.owner
    time = snapshot.column(snapshot.location.source.timestamp_field)
    keys = {key.frame_name: snapshot.column(key.view_name) for key in join_keys(view)}
    low, high = microseconds(start), microseconds(end)
    where = between(time, snapshot.kind(time), low=low, high=high, unit="us")
    table = snapshot.read([time, *keys.values()], where=where)
    values, unit, known = time_values(table.column(time), owner=owner, name=time)
    inner = finer(unit, "us")
    values = rescale(values, source=unit, target=inner)
    bounds = rescale(np.array([low, high]), source="us", target=inner)
    inside = known & (values >= bounds[0]) & (values <= bounds[1])
    columns = {EVENT_TIME: pa.array(values, pa.timestamp(inner, tz="UTC"))}
    columns |= {name: table.column(own) for name, own in keys.items()}
    return pa.table(columns).filter(pa.array(inside))


def _to_arrow(frame: EntityFrame) -> pa.Table:
    if not isinstance(frame, EntityFrame):
        raise ConfigError(f"{FRAME}: it is a {type(frame).__name__}; pass a pandas DataFrame or an Arrow table.")
    names = [str(name) for name in frame.columns] if isinstance(frame, pd.DataFrame) else frame.schema.names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"{FRAME}: more than one column is named {', '.join(twice)}. Rename or drop one.")
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    return frame if isinstance(frame, pa.Table) else _from_pandas(frame)


def _refuse_far_times(times: Ints, *, unit: str, name: str) -> None:
    """Refuse times that no datetime can hold; nanoseconds do not reach that far."""
    if unit == "ns":
        return
    first, last = rescale(np.array([FIRST_TIME, LAST_TIME]), source="us", target=unit)
    far = times[(times < first) | (times > last)]
    if len(far):
        raise ConfigError(
            f"{FRAME}: column {name!r} has {far[0]} {unit} since 1970, which is outside the years 1 to 9999."
            " Name the unit of the numbers, for example pandas.to_datetime(..., unit='ms', utc=True)."
        )


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = "; ".join(str(part) for part in reversed(error.args))
        fault = "a type that Arrow lacks" if isinstance(error, pa.ArrowNotImplementedError) else "different types"
        raise ConfigError(f"{FRAME}: a column has values of {fault}: {reason}.") from error
    return table.replace_schema_metadata(None)


def _time_column(table: pa.Table) -> str:
    if EVENT_TIME in table.column_names:
        return EVENT_TIME
    found: list[str] = [column.name for column in table.schema if pa.types.is_timestamp(column.type)]
    if len(found) != 1:
        raise ConfigError(
            f"{FRAME}: there is no column {EVENT_TIME!r} and {len(found) or 'no'} other timestamp columns"
            f" ({', '.join(found) or ', '.join(table.column_names) or 'no columns'})."
            f" Name the time of each row {EVENT_TIME!r}."
        )
    return found[0]


def _common(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the type in which two key columns are compared, or None where they cannot be equal."""
    if pa.types.is_null(first):
        return second
    pair = (first, second)
    if all(_is_text(kind) for kind in pair):
        return pa.string()
    if all(pa.types.is_integer(kind) for kind in pair):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in pair):
        return pa.float64()
    if all(pa.types.is_timestamp(kind) for kind in pair):
        return pa.timestamp("us", tz="UTC")
    return first if first == second else None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
