"""Which items are no longer as the run knows them: their attributes were edited, or move by themselves, since the fit.

A candidate in training is as it was at the time of its sample, so a candidate online is as the store has it now. Items
that are still as they were at the fit, mostly all, are found in the run's item table and need not be encoded again.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from liber_feast.inputs import InputSpec
from serving.catalog import CAPACITY, Attributes


class KnownItems:
    """Compares what the store has of items with the run's item table, once for each time that it was read.

    Safe to use from several threads.
    """

    def __init__(self, spec: InputSpec, *, table_of: Callable[[Sequence[str], Sequence[Attributes]], pa.Table]) -> None:
        """Take the columns of `spec` of some items and their attributes from `table_of`."""
        self._spec, self._table_of = spec, table_of
        self._compared: dict[str, tuple[Attributes, bool]] = {}

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._spec.item_rows

    def is_as_read(self, item_ids: Sequence[str], *, attributes: Mapping[str, Attributes | None]) -> list[bool]:
        """Return which items are to be taken as the store has them: unknown ones, and those that changed."""
        changed: dict[str, bool] = {}
        new: dict[str, Attributes] = {}
        for name in dict.fromkeys(item_ids):
            found, before = attributes[name], self._compared.get(name)
            if before is not None and before[0] is found:
                changed[name] = before[1]
            elif name not in self:
                changed[name] = True
            elif found is None:
                changed[name] = False
            else:
                new[name] = found
        if new:
            changed |= self._compare(new)
        return [changed[name] for name in item_ids]

    def _compare(self, read: Mapping[str, Attributes]) -> dict[str, bool]:
        items = self._spec.encode_items(self._table_of(list(read), list(read.values())))
        rows = self._spec.item_rows.last(pa.array(list(read), pa.string()))
        known = self._spec.items
        differs = (items.codes != known.codes[rows]).any(axis=1) | (items.numbers != known.numbers[rows]).any(
            axis=(1, 2)
        )
        if items.vectors is not None and known.vectors is not None:
            moved = (items.vectors.take(np.arange(len(read))) != known.vectors[rows]).any(axis=1)
            differs |= moved & (items.vectors.rows >= 0)
        changed = dict(zip(read, differs.tolist(), strict=True))
        if len(self._compared) > CAPACITY:  # each holds what was read, which the catalog may have dropped
            self._compared = {}
        self._compared |= {name: (found, changed[name]) for name, found in read.items()}
        return changed
