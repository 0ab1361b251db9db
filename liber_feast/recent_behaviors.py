"""The recent behaviors of each row: what the view `behavior_sequence` gives, as lists or as positions."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from liber_feast.errors import DataSetError
from liber_feast.ragged import Offsets, RaggedValues, list_values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecentBehaviors:
    """Row r has the behaviors `starts[r]` to `starts[r] + lengths[r]`, oldest first; rows may share behaviors."""

    starts: Offsets
    lengths: Offsets
    item_ids: pa.Array
    """(N,) texts."""
    ratings: pa.Array
    """(N,) float64, null where there is none."""
    times: Offsets | None
    """(N,) event times, microseconds since 1970 UTC; None where they are not known."""

    def last(self, count: int) -> tuple[RaggedValues, RaggedValues]:
        """Return the items and the ratings of the last `count` behaviors of each row."""
        items, ratings = (
            RaggedValues(starts=self.starts, lengths=self.lengths, values=values).last(count)
            for values in (self.item_ids, self.ratings)
        )
        return items, ratings


def read_recent_behaviors(rows: pa.Table, *, last: int) -> RecentBehaviors:
    """Return the last `last` values of the columns `item_ids` and `ratings`, and of `times` where there is one.

    Raises:
        DataSetError: a row has more of one than of another.
    """
    kinds = {"item_ids": pa.string(), "ratings": pa.float64(), "times": pa.int64()}
    found = {
        name: list_values(rows, name, kind=kind, last=last)
        for name, kind in kinds.items()
        if name != "times" or name in rows.column_names
    }
    items = found["item_ids"]
    for name, values in found.items():
        if not np.array_equal(items.lengths, values.lengths):
            raise DataSetError(f"behavior_sequence: `item_ids` and `{name}` of a row differ in length.")
    return RecentBehaviors(
        starts=items.starts,
        lengths=items.lengths,
        item_ids=items.values,
        ratings=found["ratings"].values,
        times=found["times"].values.to_numpy() if "times" in found else None,
    )
