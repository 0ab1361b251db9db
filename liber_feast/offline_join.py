"""Join one feature view to entity rows, as of each row's event time.

Views tagged `liber.stage: sequence` and `vector` are computed from the raw behaviors and from the single
partition vectors; no row per behavior and N is stored. An entity row that finds nothing (a user's first behavior, a
user without a sealed partition) gets null for every feature of the view, counts included, as in any view.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.behavior import BEHAVIOR_ID, ITEM, RATING, behavior_ids
from liber_feast.errors import ConfigError, DataSetError, InvalidBehaviors, one_line
from liber_feast.gather import gather, one_array
from liber_feast.offline_candidates import Candidates, ViewRequest, find_candidates
from liber_feast.offline_entities import EntityRows, join_keys
from liber_feast.offline_read import STAGE, Snapshot
from liber_feast.partition_vectors import REBUILD
from liber_feast.pit import NO_ROW, Ints, Windows, as_of, last_visible, order_by, paired, rescale
from liber_feast.window_lists import concat_windows, gather_windows

SEQUENCE_SOURCES = {"item_ids": ITEM, "ratings": RATING}
Column = Callable[[], pa.ChunkedArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLimits:
    """How long the lists of the computed views are; both are settings of the engine."""

    sequence_length: int = 50
    memory_window: int = 50


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ViewWindows:
    """What each entity row sees of a computed view: one window per entity row over the candidates `found`."""

    found: Candidates
    windows: Windows
    columns: dict[str, str]
    """The source's own names of the columns that were read, by the names that the view's stage has for them."""


def join_view(
    request: ViewRequest, *, rows: EntityRows, snapshot: Snapshot, limits: StageLimits
) -> list[pa.ChunkedArray]:
    """Return one column per wanted feature, one value per entity row, null where nothing matches.

    Raises:
        ConfigError: a column is missing, of a wrong type, or its key cannot be compared with the entity frame's.
        InvalidBehaviors: the behaviors of a sequence view have null ids or items.
        DataSetError: a partition of a vector view has a vector but no index or no encoder version.
    """
    stage = request.view.tags.get(STAGE)
    if stage == "sequence":
        return _sequences(request, rows=rows, snapshot=snapshot, length=limits.sequence_length)
    if stage == "vector":
        return _vectors(request, rows=rows, snapshot=snapshot, length=limits.memory_window)
    return _latest(request, rows=rows, snapshot=snapshot)


def _latest(request: ViewRequest, *, rows: EntityRows, snapshot: Snapshot) -> list[pa.ChunkedArray]:
    """The latest row at or before the entity row's time; the later created, then the later written row wins a tie."""
    own = [snapshot.column(name) for name in request.features]
    found = find_candidates(request, rows=rows, snapshot=snapshot, columns=own, lookback=request.view.ttl)
    cut = request.cut_by_created and found.created is not None
    seen, times = found.visibility(strict=False, cut_by_created=True) if cut else (None, found.queries(found.unit))
    positions = as_of(
        found.groups,
        found.times,
        query_groups=found.query_groups,
        query_times=times,
        created=found.created,
        visible_from=seen,
    )
    positions = np.where(found.expired(positions, ttl=request.view.ttl), NO_ROW, positions)
    places = found.table_rows(positions)
    return [gather(found.table.column(name), places) for name in own]


def sequence_windows(request: ViewRequest, *, rows: EntityRows, snapshot: Snapshot, length: int) -> ViewWindows:
    """Return the last `length` behaviors strictly before each entity row's time, oldest first.

    `columns` has the sources of the wanted features. A null rating stays one.

    Raises:
        ConfigError: as `join_view`.
        InvalidBehaviors: the behaviors have null ids, or null items and these are needed.
    """
    names = {name: snapshot.column(SEQUENCE_SOURCES[name]) for name in request.features if name in SEQUENCE_SOURCES}
    id_column = snapshot.find(BEHAVIOR_ID)
    tie_breaker = id_column or snapshot.column(ITEM)
    found = find_candidates(request, rows=rows, snapshot=snapshot, columns=[*names.values(), tie_breaker])
    for name in {tie_breaker, names.get("item_ids", tie_breaker)}:
        _refuse_unnamed(found, column=name, owner=snapshot.location.owner)
    seen, times = found.visibility(strict=True, cut_by_created=request.cut_by_created)
    windows = last_visible(
        found.groups,
        order=_behavior_order(found, request=request, snapshot=snapshot, id_column=id_column),
        visible_from=seen,
        query_groups=found.query_groups,
        query_times=times,
        length=length,
    )
    windows = windows.without(found.expired(windows.newest, ttl=request.view.ttl))
    return ViewWindows(found=found, windows=windows, columns=names)


def vector_windows(request: ViewRequest, *, rows: EntityRows, snapshot: Snapshot, length: int) -> ViewWindows:
    """Return the last `length` partitions sealed at or before each entity row's time, oldest first.

    Of a partition encoded more than once the newest vector counts, and of a user whose vectors are of several
    encoder versions those of the version of the newest vector among the visible ones: versions do not mix.
    A row without a vector counts as not there.
    `columns` has `vector`, `partition_index` and `encoder_version`.

    Raises:
        ConfigError: as `join_view`, or the vectors are no lists of numbers, the indexes no integers.
        DataSetError: a vector's partition index or encoder version is null.
    """
    names = {name: snapshot.column(name) for name in ("vector", "partition_index", "encoder_version")}
    vector, index, version = names.values()
    _check_partition_types(snapshot, vector=vector, index=index)
    found = find_candidates(request, rows=rows, snapshot=snapshot, columns=[vector, index, version], filled=vector)
    for name in (index, version):
        _refuse_nulls(found.take(name), name=name, owner=snapshot.location.owner)
    seen, times = found.visibility(strict=False, cut_by_created=request.cut_by_created)
    created = np.zeros(len(found.times), np.int64) if found.created is None else found.created
    versions = found.take(version).dictionary_encode().indices
    groups = paired(found.groups, versions.to_numpy(zero_copy_only=False).astype(np.int64))
    newest = as_of(found.groups, created, query_groups=found.query_groups, query_times=times, visible_from=seen)
    indexes = found.take(index).cast(pa.int64()).to_numpy(zero_copy_only=False)
    windows = last_visible(
        groups,
        order=np.lexsort((created, indexes, groups)),
        visible_from=seen,
        query_groups=np.where(newest >= 0, groups[newest], -1) if len(groups) else newest,
        query_times=times,
        length=length,
        labels=indexes,
    )
    windows = windows.without(found.expired(windows.newest, ttl=request.view.ttl))
    return ViewWindows(found=found, windows=windows, columns=names)


def _sequences(request: ViewRequest, *, rows: EntityRows, snapshot: Snapshot, length: int) -> list[pa.ChunkedArray]:
    view = sequence_windows(request, rows=rows, snapshot=snapshot, length=length)
    found, windows, names = view.found, view.windows, view.columns
    stamps = pa.array(rescale(found.times, source=found.unit, target="us"))
    columns: dict[str, Column] = {
        "behavior_count": lambda: _counts(windows, windows.counts),
        "times": lambda: gather_windows(pa.chunked_array([stamps]), windows),
        "item_ids": lambda: gather_windows(pa.chunked_array([found.take(names["item_ids"])]), windows),
        "ratings": lambda: gather_windows(pa.chunked_array([found.take(names["ratings"])]), windows),
    }
    wanted = [_computed(columns, name, request=request) for name in request.features]
    with ThreadPoolExecutor(pa.cpu_count()) as pool:  # numpy and Arrow copy without the interpreter's lock
        return list(pool.map(lambda column: column(), wanted))


def _vectors(request: ViewRequest, *, rows: EntityRows, snapshot: Snapshot, length: int) -> list[pa.ChunkedArray]:
    view = vector_windows(request, rows=rows, snapshot=snapshot, length=length)
    found, windows, names = view.found, view.windows, view.columns
    columns: dict[str, Column] = {
        "vectors": lambda: concat_windows(pa.chunked_array([found.take(names["vector"])]), windows),
        "partition_count": lambda: _counts(windows, windows.stops - windows.starts),
        "encoder_version": lambda: gather(
            found.table.column(names["encoder_version"]), found.table_rows(windows.newest)
        ),
    }
    return [_computed(columns, name, request=request)() for name in request.features]


def _computed(columns: dict[str, Column], name: str, *, request: ViewRequest) -> Column:
    if name not in columns:
        raise ConfigError(
            f"feature view {request.view.name!r}: it is tagged {STAGE}: {request.view.tags[STAGE]}, so its features are"
            f" {', '.join(columns)}; there is no {name!r}."
        )
    return columns[name]


def _counts(windows: Windows, counts: Ints) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(counts, mask=windows.stops == windows.starts)])


def _behavior_order(found: Candidates, *, request: ViewRequest, snapshot: Snapshot, id_column: str | None) -> Ints:
    """Return the candidates by (group, event time, behavior id), each (group, behavior id) once, the first kept."""
    order = order_by(found.groups, found.times)
    groups, times = found.groups[order], found.times[order]
    same = (groups[1:] == groups[:-1]) & (times[1:] == times[:-1])
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    if id_column is None:
        key = snapshot.column(join_keys(request.view)[0].view_name)
        ids = _hashed_ids(found, key=key, item=snapshot.column(ITEM), positions=order[tied])
    else:
        every_id = _given_ids(found, id_column=id_column, owner=snapshot.location.owner)
        ids = every_id.take(pa.array(order[tied]))
    ranks = pc.rank(ids, tiebreaker="dense").to_numpy().astype(np.int64)
    by_id = np.lexsort((ranks, times[tied], groups[tied]))
    order[tied] = order[tied][by_id]
    if id_column is not None:
        encoded = every_id.dictionary_encode()
        return _first_of_each(order, found.groups, codes=encoded.indices.to_numpy().astype(np.int64))
    # A hash of user, item and time can repeat only within a tie, and there next to itself.
    pairs = np.stack([groups[tied][by_id], times[tied][by_id], ranks[by_id]])
    repeated = np.flatnonzero((pairs[:, 1:] == pairs[:, :-1]).all(axis=0)) + 1
    return np.delete(order, tied[repeated])


def _check_partition_types(snapshot: Snapshot, *, vector: str, index: str) -> None:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    kind, number = snapshot.kind(vector), snapshot.kind(index)
    has_numbers = any(test(kind) for test in lists) and _is_number(kind.value_type)
    for name, fits, needed in (
        (vector, has_numbers, "a list of floats"),
        (index, pa.types.is_integer(number) and number != pa.uint64(), "an integer of at most 63 bits"),
    ):
        if not fits:
            raise ConfigError(
                f"{snapshot.location.owner}: column {name!r} has type {snapshot.kind(name)}; it must be {needed}."
                " Cast the column and write it again."
            )


def _is_number(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_floating, pa.types.is_integer))


def _refuse_nulls(values: pa.Array, *, name: str, owner: str) -> None:
    if values.null_count:
        raise DataSetError(
            f"{owner}: column {name!r} is null in {values.null_count} rows that have a vector. {REBUILD}"
        )


def _refuse_unnamed(found: Candidates, *, column: str, owner: str) -> None:
    """Raise InvalidBehaviors where a candidate's id or item is null."""
    if not found.table.column(column).null_count:
        return
    count = found.take(column).null_count
    if count:
        raise InvalidBehaviors(
            f"{owner}: column {column!r} is null in {count} rows. Behaviors need every value.",
            column=column,
            row_count=count,
        )


def _given_ids(found: Candidates, *, id_column: str, owner: str) -> pa.Array:
    ids = found.take(id_column)
    try:
        return ids.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{owner}: column {id_column!r} has type {ids.type}, whose values make no ids: {one_line(error)}."
            " Write the ids as texts or integers."
        ) from error


def _hashed_ids(found: Candidates, *, key: str, item: str, positions: Ints) -> pa.Array:
    places = pa.array(found.places[positions])
    times = pa.array(found.times[positions], pa.timestamp(found.unit, tz="UTC"))
    users, items = (one_array(found.table.column(name)).take(places) for name in (key, item))
    return behavior_ids(users, items, times.cast(pa.timestamp("us", tz="UTC"), safe=False))


def _first_of_each(order: Ints, groups: Ints, *, codes: Ints) -> Ints:
    first = np.unique(paired(groups[order], codes[order]), return_index=True)[1]
    return order if len(first) == len(order) else order[np.sort(first)]
