"""Find items in an item table: as they were last, or as they were at a time."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.encoded import ItemTable
from liber_feast.fields import Ints, look_up


class ItemRows:
    """The rows of an item table by item id and time; row 0, that of the unknown item, where there is none.

    A look-up costs no pass over the table, so that a request can afford it.
    """

    def __init__(self, table: ItemTable) -> None:
        self._times = table.times
        self._last = {name: row for row, name in enumerate(table.ids, start=1)}
        # Versions of an item stand together, oldest first.
        starts = [row for row, name in enumerate(table.ids, start=1) if row == 1 or table.ids[row - 2] != name]
        sizes = np.diff(np.append(starts, len(table.ids) + 1)).astype(np.int64)
        self._first = np.append(0, np.repeat(np.array(starts, np.int64), sizes))
        self._steps = int(sizes.max(initial=0)).bit_length()

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._last

    def last(self, item_ids: pa.Array) -> Ints:
        """Return the rows (N,) of items as they were last."""
        return look_up(item_ids, self._last)

    def at(self, item_ids: pa.Array, *, times: npt.NDArray[np.int64]) -> Ints:
        """Return the rows (N,) of items as they were at `times` (N,), microseconds since 1970 UTC."""
        last = self.last(item_ids)
        low = self._first[last]
        high = np.where(last > 0, last + 1, low)  # rows before `low` hold already, those from `high` on not yet
        for _ in range(self._steps):
            middle = (low + high) // 2
            holds = (low < high) & (self._times[np.clip(middle, 1, len(self._times)) - 1] <= times)
            high = np.where((low < high) & ~holds, middle, high)
            low = np.where(holds, middle + 1, low)
        rows: Ints = np.where(low > self._first[last], low - 1, 0).astype(np.int32)
        return rows
