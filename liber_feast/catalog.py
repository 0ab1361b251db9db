"""Items and profiles, read from the sources of the views `item_attributes` and `user_profile`."""

from collections.abc import Iterable, Mapping
from typing import Any

from deltalake import DeltaTable
from feast import FeatureView, RepoConfig

from liber_feast.behavior import USER
from liber_feast.interest import Item
from liber_feast.offline_read import Location, locate, open_snapshot

TITLE, CATEGORIES, PERIOD, PROFILE = "title", "categories", "period", "profile"


class FeastCatalog:
    """What the feature repo says of items and users; a table is read again when it has changed."""

    def __init__(self, *, items: FeatureView, profiles: FeatureView, config: RepoConfig) -> None:
        self._items = _Table(items, config=config)
        self._profiles = _Table(profiles, config=config)

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Item]:
        """Return every item asked for; one without attributes has its id alone."""
        rows = self._items.rows()
        return {item_id: _item(item_id, rows.get(item_id, {})) for item_id in item_ids}

    def profiles(self, user_ids: Iterable[str]) -> Mapping[str, str]:
        """Return every profile asked for; empty where nothing is known."""
        rows = self._profiles.rows()
        return {user_id: str(rows.get(user_id, {}).get(PROFILE) or "") for user_id in user_ids}


class _Table:
    """The newest row of every key of a view's source, by the key as text."""

    def __init__(self, view: FeatureView, *, config: RepoConfig) -> None:
        self._location = locate(view.batch_source, config=config, view=view)
        self._key = view.join_keys[0] if view.join_keys else USER
        self._version: object = None
        self._rows: dict[str, dict[str, Any]] = {}

    def rows(self) -> dict[str, dict[str, Any]]:
        version = _version(self._location)
        if version is None or version != self._version:
            self._rows, self._version = self._read(), version
        return self._rows

    def _read(self) -> dict[str, dict[str, Any]]:
        snapshot = open_snapshot(self._location)
        time = self._location.source.timestamp_field
        table = snapshot.read(snapshot.dataset.schema.names).sort_by(time)
        return {str(row[self._key]): row for row in table.to_pylist()}


def _version(location: Location) -> object:
    """Return what changes when the source does; None where that cannot be told."""
    if location.is_delta and DeltaTable.is_deltatable(location.path, storage_options=location.storage_options):
        return DeltaTable(location.path, storage_options=location.storage_options).version()
    return None


def _item(item_id: str, row: Mapping[str, Any]) -> Item:
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
