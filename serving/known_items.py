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
    """Compares what the store has of items with the run's item table, once for each time that it was read."""

    def __init__(self, spec: InputSpec, *, table_of: Callable[[Sequence[str], Sequence[Attributes | None]], pa.Table]):
        """Take the columns of `spec` of some items and their attributes from `table_of`."""
        self._spec, self._table_of = spec, table_of
        self._rows = {name: row for row, name in enumerate(spec.items.ids, start=1)}  # of versions the last
        self._compared: dict[str, tuple[Attributes, bool]] = {}

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def is_as_read(self, item_ids: Sequence[str], *, attributes: Mapping[str, Attributes | None]) -> list[bool]:
        """Return which items are to be taken as the store has them: unknown ones, and those that changed."""
        names = dict.fromkeys(item_ids)
        if len(self._compared) > CAPACITY:  # each holds what was read, which the catalog may have dropped
            self._compared.clear()
        self._compare([name for name in names if name in self._rows], attributes=attributes)
        return [name not in self._rows or self._has_changed(name, attributes[name]) for name in item_ids]

    def _has_changed(self, name: str, found: Attributes | None) -> bool:
        return found is not None and self._compared[name][1]

    def _compare(self, names: Sequence[str], *, attributes: Mapping[str, Attributes | None]) -> None:
        nothing = (None, False)
        new = [name for name in names if self._compared.get(name, nothing)[0] is not attributes[name]]
        read = {name: found for name in new if (found := attributes[name]) is not None}
        if not read:
            return
        items = self._spec.encode_items(self._table_of(list(read), list(read.values())))
        rows = np.array([self._rows[name] for name in read])
        known = self._spec.items
        changed = (items.codes != known.codes[rows]).any(axis=1) | (items.numbers != known.numbers[rows]).any(
            axis=(1, 2)
        )
        if items.vectors is not None and known.vectors is not None:
            differs = (items.vectors.take(np.arange(len(read))) != known.vectors[rows]).any(axis=1)
            changed |= differs & (items.vectors.rows >= 0)
        self._compared |= {name: (found, bool(one)) for (name, found), one in zip(read.items(), changed, strict=True)}
