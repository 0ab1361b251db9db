"""Encode the fields of a user or an item: categories, lists of categories and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.ragged import list_values, whole

FEW = 256
"""Values that are looked up one by one, as those of a request: they repeat too little to be told apart first."""
NUMBER_LIMIT = 4.0
"""Standardized numbers are cut here: one wrong price must not rule a score."""

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputField:
    """One field of a user or an item."""

    name: str
    kind: Literal["category", "categories", "number"]
    values: tuple[str, ...] = ()
    """The vocabulary of a category or of a list of categories."""
    slots: int = 1
    """Codes a row has room for: 1, or the longest list seen."""
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def is_number(self) -> bool:
        return self.kind == "number"


def lookups(fields: Sequence[InputField]) -> dict[str, dict[str, int]]:
    """Return each categorical field's code by value; the codes of one side are disjoint and start at 1."""
    start, found = 1, {}
    for field in fields:
        if not field.is_number:
            found[field.name] = {value: code for code, value in enumerate(field.values, start=start)}
            start += len(field.values)
    return found


def encode_fields(
    rows: pa.Table, fields: Sequence[InputField], by_name: Mapping[str, Mapping[str, int]]
) -> tuple[Ints, Floats]:
    """Return the codes (R, T) and the numbers (R, V, 2) of `fields` in `rows`."""
    codes = [_codes(rows, field, lookup=by_name[field.name]) for field in fields if not field.is_number]
    numbers = [_numbers(rows, field) for field in fields if field.is_number]
    return (
        np.concatenate([np.zeros((rows.num_rows, 0), np.int32), *codes], axis=1),
        np.stack(numbers, axis=1) if numbers else np.zeros((rows.num_rows, 0, 2), np.float32),
    )


def look_up(values: pa.Array, lookup: Mapping[str, int]) -> Ints:
    """Return the code of each value, 0 for nulls and for what `lookup` does not know."""
    if len(values) <= FEW:
        return np.array([lookup.get(value, 0) for value in values.to_pylist()], np.int32)
    encoded = values.dictionary_encode()
    codes = np.array([lookup.get(value, 0) for value in encoded.dictionary.to_pylist()] + [0], np.int32)
    found: Ints = codes[encoded.indices.fill_null(len(codes) - 1).to_numpy(zero_copy_only=False)]
    return found


def _codes(rows: pa.Table, field: InputField, *, lookup: Mapping[str, int]) -> Ints:
    if field.kind == "category":
        return look_up(strings(rows, field.name), lookup)[:, None]
    lists = list_values(rows, field.name, kind=pa.string(), last=None)
    found = lists.of(look_up(lists.values, lookup)).select(lambda codes: codes > 0)
    return found.pad(np.arange(rows.num_rows), width=field.slots)[0]


def _numbers(rows: pa.Table, field: InputField) -> Floats:
    values = floats(column(rows, field.name, kind=pa.float64()))
    there = np.isfinite(values)
    standard = np.clip(
        (np.where(there, values, field.mean) - field.mean) / field.deviation, -NUMBER_LIMIT, NUMBER_LIMIT
    )
    return np.stack([standard, there], axis=1).astype(np.float32)


def column(rows: pa.Table, name: str, *, kind: pa.DataType) -> pa.Array:
    if name not in rows.column_names:
        return pa.nulls(rows.num_rows, kind)
    return whole(rows.column(name), kind=kind)


def strings(rows: pa.Table, name: str) -> pa.Array:
    return column(rows, name, kind=pa.string())


def floats(values: pa.Array) -> npt.NDArray[np.float64]:
    plain = values if pa.types.is_float64(values.type) else values.cast(pa.float64())
    return np.asarray(plain.to_numpy(zero_copy_only=False), np.float64)
