"""Rows of a feature view as Feast keeps them online: serialized entity keys and values.

Feast's own conversion checks every value of every list by itself; these are the same bytes, made of whole columns.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.Value_pb2 import Value, ValueType
from feast.type_map import python_values_to_proto_values
from feast.types import Array, FeastType, Float32, Float64, Int32, Int64, String

from liber_feast.behavior import CREATED_TIME, EVENT_TIME


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRows:
    """Rows of one view, column by column. Times and numbers are microseconds since 1970 UTC."""

    keys: list[bytes]
    """Serialized entity keys."""
    event_times: list[int]
    numbers: list[int]
    """What decides between rows of one event time: the higher one stays."""
    features: dict[str, list[bytes]]
    """Serialized values by feature."""
    texts: dict[str, list[str | None]]
    """What stores with a column of texts show of a value: scalars alone."""

    def take(self, places: Sequence[int]) -> "EncodedRows":
        """Return some of the rows."""

        def of(values: list[Any]) -> list[Any]:
            return [values[place] for place in places]

        return EncodedRows(
            keys=of(self.keys),
            event_times=of(self.event_times),
            numbers=of(self.numbers),
            features={name: of(values) for name, values in self.features.items()},
            texts={name: of(values) for name, values in self.texts.items()},
        )


def encode_rows(view: FeatureView, rows: pa.Table, *, number: int | Sequence[int] | None) -> EncodedRows:
    """Return rows of a view, which has one join key, as Feast keeps them; `number` as `FeastOnlineSink.write` has it.

    Raises:
        KeyError: a feature of the view is no column of `rows`.
    """
    features, texts = {}, {}
    for field in view.features:
        features[field.name], texts[field.name] = _values(rows[field.name], field.dtype)
    if number is None:
        numbers = _micros(rows[CREATED_TIME])
    else:
        numbers = [number] * len(rows) if isinstance(number, int) else list(number)
    return EncodedRows(
        keys=entity_keys(view, rows[view.join_keys[0]].to_pylist()),
        event_times=_micros(rows[EVENT_TIME]),
        numbers=numbers,
        features=features,
        texts=texts,
    )


def entity_keys(view: FeatureView, ids: Iterable[str | int]) -> list[bytes]:
    """Return the serialized keys (version 3) of users of a view with one join key.

    Raises:
        ValueError: an id is none of the type that the view has.
    """
    (column,) = view.entity_columns
    prefix, (code, encode) = serialize_entity_key_prefix([column.name]), _KEYS[column.dtype]
    encoded = (encode(one) for one in ids)
    return [b"".join((prefix, struct.pack("<II", code, len(one)), one)) for one in encoded]


def can_encode(dtype: FeastType) -> bool:
    """Say whether `entity_keys` knows ids of a type."""
    return dtype in _KEYS


_KEYS: dict[object, tuple[int, Callable[[Any], bytes]]] = {
    String: (ValueType.STRING, lambda one: str(one).encode()),
    Int64: (ValueType.INT64, lambda one: struct.pack("<q", int(one))),
    Int32: (ValueType.INT32, lambda one: struct.pack("<i", int(one))),
}
"""How an id of a type lies in an entity key."""


def _micros(times: pa.ChunkedArray) -> list[int]:
    found: list[int] = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()
    return found


def _values(column: pa.ChunkedArray, dtype: FeastType) -> tuple[list[bytes], list[str | None]]:
    """Return a column as serialized values, and as texts."""
    if dtype in _SCALARS:
        name, convert = _SCALARS[dtype]
        found = [None if one is None or one != one else convert(one) for one in column.to_pylist()]  # noqa: PLR0124
        made = [b"" if one is None else Value(**{name: one}).SerializeToString() for one in found]
        return made, [None if one is None else _text(name, one) for one in found]
    if isinstance(dtype, Array) and dtype.base_type in _LISTS:
        return _LISTS[dtype.base_type](column), [None] * len(column)
    protos = python_values_to_proto_values(
        column.combine_chunks().to_numpy(zero_copy_only=False), dtype.to_value_type()
    )
    return [one.SerializeToString() for one in protos], [extract_text_and_num(one, False)[0] for one in protos]


def _text(name: str, value: str | float) -> str:
    # A 32-bit float is shown as what the message holds of it.
    return str(np.float32(value).item() if name == "float_val" else value)


_SCALARS: dict[object, tuple[str, Callable[[Any], Any]]] = {
    String: ("string_val", str),
    Int64: ("int64_val", int),
    Int32: ("int32_val", int),
    Float64: ("double_val", float),
    Float32: ("float_val", float),
}


def _messages(column: pa.ChunkedArray, *, name: str) -> list[bytes]:
    made = []
    for one in column.to_pylist():
        value = Value()
        if one is not None:
            values = getattr(value, name)
            values.SetInParent()  # an empty list is no null
            values.val.extend(one)
        made.append(value.SerializeToString())
    return made


def _packed(column: pa.ChunkedArray, *, name: str, kind: str) -> list[bytes]:
    """Return lists of floats: in the message they lie as in an array, one after the other."""
    lists = column.combine_chunks().cast(pa.list_(column.type.value_type))
    values = lists.values.to_numpy(zero_copy_only=False).astype(kind, copy=False)
    raw, edges = values.tobytes(), lists.offsets.to_numpy() * values.itemsize
    made = [_message(name, raw[start:end]) for start, end in pairwise(edges.tolist())]
    for place in np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False)).tolist():
        made[place] = b""
    return made


def _message(name: str, raw: bytes) -> bytes:
    """Return the bytes of a `Value` whose field `name` is a list of numbers that lie in `raw`."""
    inner = b"".join((_VALUES, _varint(len(raw)), raw)) if raw else b""
    return b"".join((_varint(Value.DESCRIPTOR.fields_by_name[name].number << 3 | 2), _varint(len(inner)), inner))


_VALUES = b"\x0a"
"""The field of the values in a message that is a list: number 1, bytes of a given length."""
_MORE = 0x80
"""The bit that says that another byte follows."""


def _varint(number: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number >= _MORE:
        parts.append(number % _MORE | _MORE)
        number //= _MORE
    parts.append(number)
    return bytes(parts)


_LISTS: dict[object, Callable[[pa.ChunkedArray], list[bytes]]] = {
    String: partial(_messages, name="string_list_val"),
    Int64: partial(_messages, name="int64_list_val"),
    Int32: partial(_messages, name="int32_list_val"),
    Float64: partial(_packed, name="double_list_val", kind="<f8"),
    Float32: partial(_packed, name="float_list_val", kind="<f4"),
}
