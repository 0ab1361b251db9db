"""Where published rows go online, as the publisher sees it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import pyarrow as pa


class OnlineSink(Protocol):
    """Where the newest row of every user goes."""

    def write(
        self, view: str, rows: pa.Table, *, number: int | Sequence[int] | None = None, force: bool = False
    ) -> None:
        """Write rows of a feature view: its join keys, features, event_timestamp and created_timestamp.

        A row replaces the one of its user that is there where its order (event_timestamp, `number`) is not lower, and
        with `force` in any case.
        """
        ...

    def write_together(self, rows: Mapping[str, pa.Table]) -> None:
        """Do as `write` for several views, without a number: all of it or, where the store has transactions, nothing.

        Rows of a view are then ordered by (event_timestamp, created_timestamp).
        """
        ...

    def delete(self, user_ids: Sequence[str | int]) -> int:
        """Delete the rows of users in every view; return how many there were."""
        ...
