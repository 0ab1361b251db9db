"""Item attributes from the online store behind a cache with a bound and a time to live.

The run's item table has the encoded fields of every item known at training, as they were then, but no titles. So
titles, and the attributes of items that are newer or changed, come from the store and are read once for many requests.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from liber_feast.errors import OnlineStoreAway
from serving.online import OnlineRow

Attributes = Mapping[str, Any]
CAPACITY = 50_000
TIME_TO_LIVE_S = 60.0
"""How long an edited title, or an item that has just been loaded, may wait to be seen."""


class ItemReader(Protocol):
    """Reads item attributes; `OnlineFeatures` is one."""

    def items(self, item_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the attributes of items, in their order, with one read of the store."""
        ...


class ItemCatalog:
    """The attributes of items by id; safe to use from several threads."""

    def __init__(
        self,
        features: ItemReader,
        *,
        capacity: int = CAPACITY,
        time_to_live_s: float = TIME_TO_LIVE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._features, self._capacity, self._clock = features, capacity, clock
        self._time_to_live_s = time_to_live_s
        self._kept: OrderedDict[str, tuple[float, Attributes | None]] = OrderedDict()
        self._lock = threading.Lock()

    def attributes(self, item_ids: Sequence[str]) -> dict[str, Attributes | None]:
        """Return the attributes of each distinct id, None of an item the store does not have; at most one read.

        While the store is away that is what was known last, and nothing of an item that was not read before.
        """
        now = self._clock()
        distinct = list(dict.fromkeys(item_ids))
        with self._lock:
            found = {name: self._kept[name][1] for name in distinct if self._is_fresh(name, now=now)}
        absent = [name for name in distinct if name not in found]
        if absent:
            try:
                rows = self._features.items(absent)
            except OnlineStoreAway:
                return found | self._known_last(absent)
            read = {name: row.values if row.views else None for name, row in zip(absent, rows, strict=True)}
            self._keep(read, until=now + self._time_to_live_s)
            found |= read
        return found

    def _known_last(self, names: Sequence[str]) -> dict[str, Attributes | None]:
        with self._lock:
            return {name: self._kept[name][1] if name in self._kept else None for name in names}

    def _is_fresh(self, name: str, *, now: float) -> bool:
        if name not in self._kept or self._kept[name][0] <= now:
            return False
        self._kept.move_to_end(name)
        return True

    def _keep(self, read: Mapping[str, Attributes | None], *, until: float) -> None:
        with self._lock:
            for name, attributes in read.items():
                self._kept[name] = until, attributes
                self._kept.move_to_end(name)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
