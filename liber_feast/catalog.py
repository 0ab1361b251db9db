"""Items and profiles, read from the sources of the views `item_attributes` and `user_profile`."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from feast import FeatureView, RepoConfig

from liber_feast.behavior import USER
from liber_feast.delta import newest_commit
from liber_feast.interest import Item
from liber_feast.offline_read import Location, locate, microsecond_values, open_snapshot
from liber_feast.pit import HIGHEST

NOW = HIGHEST
TITLE, CATEGORIES, PERIOD, PROFILE = "title", "categories", "period", "profile"


class FeastCatalog:
    """What the feature repo says of items and users; a table is read again when it has changed.

    "At a time" is as of it: the newest row at or before. What was described only later is as its first row has it,
    for tables are often written after the behaviors that they describe.
    """

    def __init__(self, *, items: FeatureView, profiles: FeatureView, config: RepoConfig) -> None:
        self._items = _Table(items, config=config)
        self._profiles = _Table(profiles, config=config)

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Item]:
        """Return every item asked for, as it is now; one without attributes has its id alone."""
        versions = self._items.versions()
        return {item_id: described_item(item_id, _row_at(versions.get(item_id), NOW)) for item_id in item_ids}

    def items_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Item]:
        """Return items by (id, microseconds since 1970 UTC), as they were then."""
        versions, found = self._items.versions(), {}
        for item_id, time in wanted:
            found[item_id, time] = described_item(item_id, _row_at(versions.get(item_id), time))
        return found

    def item_versions(self, item_ids: Iterable[str] | None = None) -> Iterator[tuple[str, int, Item]]:
        """Yield every version of the items that are described, of all or of some: id, time in microseconds, item."""
        versions = self._items.versions()
        for item_id in sorted(versions if item_ids is None else versions.keys() & set(item_ids)):
            found = versions[item_id]
            for time, row in zip(found.times, found.rows, strict=True):
                yield item_id, time, described_item(item_id, row)

    def profiles_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        """Return profiles by (user id, microseconds since 1970 UTC), as they were then; empty if nothing is known."""
        versions = self._profiles.versions()
        return {
            (user_id, time): str(_row_at(versions.get(user_id), time).get(PROFILE) or "") for user_id, time in wanted
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Versions:
    """The rows of one key, oldest first."""

    times: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def _row_at(versions: _Versions | None, time: int) -> dict[str, Any]:
    if versions is None:
        return {}
    return versions.rows[max(bisect_right(versions.times, time) - 1, 0)]


class _Table:
    """Every row of a view's source by its key as text."""

    def __init__(self, view: FeatureView, *, config: RepoConfig) -> None:
        self._location = locate(view.batch_source, config=config, view=view)
        self._key = view.join_keys[0] if view.join_keys else USER
        self._version: object = None
        self._versions: dict[str, _Versions] = {}

    def versions(self) -> dict[str, _Versions]:
        version = _version(self._location)
        if version is None or version != self._version:
            self._versions, self._version = self._read(), version
        return self._versions

    def _read(self) -> dict[str, _Versions]:
        snapshot = open_snapshot(self._location)
        snapshot.column(self._key)
        name = snapshot.column(self._location.source.timestamp_field)
        table = snapshot.read(snapshot.dataset.schema.names)
        times = microsecond_values(table.column(name), owner=self._location.owner, name=name)
        order = np.argsort(times, kind="stable")
        found: dict[str, _Versions] = defaultdict(_Versions)
        rows = snapshot.renamed(table).take(pa.array(order)).to_pylist()
        for time, row in zip(times[order].tolist(), rows, strict=True):
            if row[self._key] is None:
                continue
            versions = found[str(row[self._key])]
            versions.times.append(time)
            versions.rows.append(row)
        return dict(found)


def _version(location: Location) -> object:
    """Return what changes when the source does; None where that cannot be told."""
    if not location.is_delta:
        return None
    newest = newest_commit(Path(location.path))  # the table itself takes fifty times as long to open
    if newest is not None:
        return newest
    if DeltaTable.is_deltatable(location.path, storage_options=location.storage_options):
        return DeltaTable(location.path, storage_options=location.storage_options).version()
    return None


def described_item(item_id: str, row: Mapping[str, Any]) -> Item:
    """Return an item as a row of the item source describes it; an empty row knows nothing of it."""
    known = {TITLE, CATEGORIES, PERIOD}
    categories = row.get(CATEGORIES) or ()
    texts = {name: value for name, value in row.items() if isinstance(value, str) and value}
    return Item(
        item_id=item_id,
        title=texts.get(TITLE),
        categories=(categories,) if isinstance(categories, str) else tuple(map(str, categories)),
        period=texts.get(PERIOD),
        attributes={name: value for name, value in texts.items() if name not in known},
    )
