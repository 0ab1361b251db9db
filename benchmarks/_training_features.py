"""The fields of our inputs as columns of fuxictr: the same values, with a vocabulary of its own for each field.

Shape suffixes: Q samples, N behaviors, T code slots, I items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from liber_feast.fields import InputField
from training.fit import Prepared

RATINGS = 12
"""Feedback codes: 0 is none, 1 to 10 are ratings of half a star to five, 11 is a behavior without one."""
BINS = 32

Array = npt.NDArray[Any]


@dataclass(kw_only=True, slots=True)
class Columns:
    """Columns by name, and what fuxictr's feature map says of each."""

    values: dict[str, Array] = field(default_factory=dict)
    features: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, values: Array, *, count: int, source: str, share: str | None = None) -> None:
        """Add codes below `count`, (Q,) or, as the mean over those that are not 0, (Q, T)."""
        spec: dict[str, Any] = {"type": "categorical", "vocab_size": count, "source": source, "padding_idx": 0}
        if values.ndim > 1:
            spec |= {
                "type": "sequence",
                "max_len": values.shape[1],
                "feature_encoder": "layers.MaskedAveragePooling()",
            }
        if share:
            spec["share_embedding"] = share
        self.values[name], self.features[name] = values, spec


def flat_columns(prepared: Prepared, *, train: Array, binned: bool = False) -> Columns:
    """Return every field of the samples `train`, the behaviors as sequences that are pooled field by field.

    Dense features are numbers or, `binned`, codes.
    """
    spec, users = prepared.spec, prepared.users
    columns, dense = Columns(), spec.dense(users, items=prepared.items, user_rows=train, item_rows=train)
    for name, codes, count in _fields(spec.user_fields, users.codes[train]):
        columns.add(f"user_{name}", codes, count=count, source="user")
    for name, codes, count in _fields(spec.item_fields, prepared.items.codes[train]):
        columns.add(f"item_{name}", codes, count=count, source="item")
    for number, values in enumerate(dense.T):
        if binned:
            columns.add(f"dense{number}", _bins(values), count=BINS + 1, source="user")
        else:
            columns.values[f"dense{number}"] = values
            columns.features[f"dense{number}"] = {"type": "numeric", "source": "user"}
    rows_QN, mask_QN = users.history.pad(train, width=spec.sequence_length)
    codes_QNT = spec.items.codes[rows_QN] * mask_QN[..., None]
    for name, codes, count in _fields(spec.item_fields, codes_QNT):
        columns.add(f"history_{name}", codes.reshape(len(train), -1), count=count, source="h", share=f"item_{name}")
    columns.add("history_feedback", _feedback(prepared, train, mask_QN), count=RATINGS, source="h")
    return columns


def user_columns(prepared: Prepared, *, train: Array) -> Columns:
    """Return user fields and dense features of the samples `train`, these in bins: its loader takes integers."""
    spec, users, columns = prepared.spec, prepared.users, Columns()
    for name, codes, count in _fields(spec.user_fields, users.codes[train]):
        columns.add(f"user_{name}", codes, count=count, source="user")
    dense = spec.dense(users, items=prepared.items, user_rows=train, item_rows=train)
    for number, values in enumerate(dense.T):
        columns.add(f"dense{number}", _bins(values), count=BINS + 1, source="user")
    return columns


def item_columns(prepared: Prepared, *, train: Array) -> tuple[Columns, list[Array], Array]:
    """Return the table of items, the rows of each sample's behaviors in it, and those of the candidates.

    Feedback is one more field of an item, so there is a row for each item with each feedback. A candidate's is 0.
    """
    spec, users, columns = prepared.spec, prepared.users, Columns()
    table_IT = spec.items.codes
    for name, codes, count in _fields(spec.item_fields, np.repeat(table_IT, RATINGS, axis=0)):
        columns.add(f"item_{name}", codes, count=count, source="item")
    columns.add("item_feedback", np.tile(np.arange(RATINGS), len(table_IT)), count=RATINGS, source="item")
    columns.features["item_feedback"]["padding_idx"] = None  # a candidate's 0 is embedded as `wanted` is with us
    rows_QN, mask_QN = users.history.pad(train, width=spec.sequence_length)
    places_QN = rows_QN * RATINGS + _feedback(prepared, train, mask_QN)
    sequences = [places[mask] for places, mask in zip(places_QN, mask_QN, strict=True)]
    row_of = {tuple(codes): row for row, codes in reversed(list(enumerate(table_IT.tolist())))}
    candidates = [row_of.get(tuple(codes), 0) for codes in prepared.items.codes[train].tolist()]
    return columns, sequences, np.array(candidates) * RATINGS


def _bins(values: Array) -> Array:
    """Return the codes of numbers, from 1 on, each of as many of them."""
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    codes: Array = 1 + np.searchsorted(edges, values)
    return codes


def _feedback(prepared: Prepared, rows: Array, mask_QN: Array) -> Array:
    """Return the feedback codes (Q, N) of behaviors, 0 where there is none."""
    ratings_QN, _ = prepared.users.ratings.pad(rows, width=prepared.spec.sequence_length)
    codes_QN = np.nan_to_num(np.round(ratings_QN * 2), nan=RATINGS - 1).astype(int).clip(1, RATINGS - 1)
    found: Array = np.where(mask_QN, codes_QN, 0)
    return found


def _fields(fields: Sequence[InputField], codes: Array) -> Iterator[tuple[str, Array, int]]:
    """Yield each field's name, its codes from 1 on, (..., slots) or for one slot (...), and how many there are."""
    first, start = 1, 0
    for one in fields:
        if one.is_number:
            continue
        part = codes[..., start : start + one.slots]
        own = np.where(part > 0, part - first + 1, 0)
        yield one.name, own[..., 0] if one.slots == 1 else own, len(one.values) + 1
        first, start = first + len(one.values), start + one.slots
