"""Fit an InputSpec on the training part: vocabularies, scales and the item table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.behavior import CREATED_TIME, EVENT_TIME, ITEM, USER
from liber_feast.evidence_rows import ITEM_VECTOR, Match, MatchScales, read_item_vectors
from liber_feast.fields import InputField, column, encode_fields, floats, lookups, strings
from liber_feast.inputs import InputSpec, ItemTable, MemoryKind
from liber_feast.offline_read import microsecond_values
from liber_feast.pit import LOWEST
from liber_feast.ragged import list_values

TEXT_COLUMNS = frozenset({"profile", "title"})
"""Free text: read by the interest stage and by people, no field of a backbone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputOptions:
    """What is chosen about the inputs and not learned from the samples."""

    like_above: float = 3.0
    sequence_length: int = 20
    """Recent behaviors a backbone sees."""
    least_count: int = 2
    """A value seen in fewer training rows is unknown: its embedding would learn one label by heart."""
    user_id: bool = False
    """Whether the user id is a field. It learns each user's bias and is noise for every new user."""
    memory_width: int = 0
    """Width of a partition's vector; 0 leaves LIBER out."""
    fused_width: int = 0
    max_partitions: int = 50
    memory_kind: MemoryKind = "partitions"
    item_width: int = 0
    """Width of an item's vector in the column `vector` of the catalog; 0 leaves item texts out."""
    memory_evidence: bool = False
    """Whether the evidence of the long-term memory is compared with candidates."""
    match: Match = "mean"
    """How its partitions count."""


def fit_inputs(
    samples: pa.Table,
    *,
    user_columns: Sequence[str],
    item_columns: Sequence[str],
    catalog: pa.Table | None = None,
    options: InputOptions,
) -> InputSpec:
    """Return the spec that `samples`, the training part alone, give.

    `catalog` holds the attributes of items by `item_id`, one row per version with its `event_timestamp`, as
    `item_versions` orders them, and the vectors of items where `options` ask for them; its items make the item table,
    so that history items and, at serving, candidates need no attribute read. None takes them from the samples. The
    fields are the columns named, less free text, less what is neither text, list of texts nor number, and less what
    has no value often enough. The scales of matches are left at 1 (`training.fit_match`).
    """
    items = _catalog(samples, item_columns) if catalog is None else catalog
    user_names = [USER, *user_columns] if options.user_id else list(user_columns)
    user_fields = _fields(samples, user_names, options=options)
    item_fields = _fields(samples, [ITEM, *item_columns], options=options)
    ratings = floats(column(samples, "rating", kind=pa.float64()))
    counts = np.log1p(np.nan_to_num(floats(column(samples, "behavior_count", kind=pa.float64()))))
    codes, numbers = encode_fields(items, item_fields, lookups(item_fields))
    width = options.item_width
    return InputSpec(
        user_fields=user_fields,
        item_fields=item_fields,
        like_above=options.like_above,
        like_rate=float((ratings > options.like_above).mean()),
        rating_mean=float(ratings.mean()),
        rating_deviation=_deviation(ratings),
        count_mean=float(counts.mean()),
        count_deviation=_deviation(counts),
        sequence_length=options.sequence_length,
        memory_width=options.memory_width,
        fused_width=options.fused_width,
        max_partitions=options.max_partitions,
        memory_kind=options.memory_kind,
        match=MatchScales(width=width, memory=options.memory_evidence, match=options.match) if width else None,
        items=ItemTable(
            ids=tuple(strings(items, ITEM).to_pylist()),
            times=_times(items),
            codes=np.concatenate([np.zeros((1, codes.shape[1]), np.int32), codes]),
            numbers=np.concatenate([np.zeros((1, *numbers.shape[1:]), np.float32), numbers]),
            vectors=_vectors(items, width=width) if width else None,
        ),
    )


def _vectors(items: pa.Table, *, width: int) -> npt.NDArray[np.float32]:
    """Return (R + 1, E): the vectors of an item table, zeros for the unknown item."""
    found = read_item_vectors(items, width=width).take(np.arange(len(items)))
    return np.concatenate([np.zeros((1, width), np.float32), found])


def item_versions(items: pa.Table) -> pa.Table:
    """Return rows of items by id and time; of rows of one item and time the one created last, then the last."""
    times = _times(items)
    created = _times(items, name=CREATED_TIME) if CREATED_TIME in items.column_names else np.zeros(len(items), np.int64)
    codes = pc.rank(strings(items, ITEM), tiebreaker="dense").to_numpy().astype(np.int64)
    order = np.lexsort((created, times, codes))
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(codes[order]) != 0) | (np.diff(times[order]) != 0)
    known = np.asarray(items[EVENT_TIME].is_valid())[order]
    return items.take(pa.array(order[last & known], pa.int64()))


def _times(items: pa.Table, *, name: str = EVENT_TIME) -> npt.NDArray[np.int64]:
    """Return a time column in microseconds; without one, or a value, the beginning of time."""
    if name not in items.column_names:
        return np.full(len(items), LOWEST, np.int64)
    return microsecond_values(items[name], owner="items", name=name)


def _catalog(samples: pa.Table, item_columns: Sequence[str]) -> pa.Table:
    """Return each item of the samples once, in order of id, as its latest row describes it."""
    ids = strings(samples, ITEM)
    encoded = ids.dictionary_encode()
    last = np.zeros(len(encoded.dictionary), np.int64)
    last[encoded.indices.to_numpy(zero_copy_only=False)] = np.arange(len(ids))
    names = [ITEM, *(name for name in (*item_columns, ITEM_VECTOR) if name in samples.column_names)]
    found = samples.select(names).take(pa.array(np.sort(last)))
    return found.sort_by(ITEM)


def _fields(samples: pa.Table, names: Sequence[str], *, options: InputOptions) -> tuple[InputField, ...]:
    found = (
        _field(samples, name, options=options)
        for name in names
        if name in samples.column_names and name not in TEXT_COLUMNS
    )
    return tuple(field for field in found if field is not None)


def _field(samples: pa.Table, name: str, *, options: InputOptions) -> InputField | None:
    kind = samples.schema.field(name).type
    if _is_text(kind) or pa.types.is_boolean(kind):
        values = _vocabulary(strings(samples, name), options=options)
        return InputField(name=name, kind="category", values=values) if values else None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = floats(column(samples, name, kind=pa.float64()))
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return None
        return InputField(name=name, kind="number", mean=float(numbers.mean()), deviation=_deviation(numbers))
    if _is_list(kind) and _is_text(kind.value_type):
        lists = list_values(samples, name, kind=pa.string(), last=None)
        values = _vocabulary(lists.values, options=options)
        slots = int(lists.lengths.max(initial=1))
        return InputField(name=name, kind="categories", values=values, slots=slots) if values else None
    return None


def _vocabulary(values: pa.Array, *, options: InputOptions) -> tuple[str, ...]:
    counted = Counter(
        {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist() if pair["values"] is not None}
    )
    return tuple(sorted(value for value, count in counted.items() if count >= options.least_count))


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _deviation(values: npt.NDArray[np.float64]) -> float:
    return float(values.std()) or 1.0
