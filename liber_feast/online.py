"""The online store as the sink of published rows: the newest row of each user stays, whoever writes in what order."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value

from liber_feast.evidence import ITEM_TEXT
from liber_feast.offline_read import STAGE
from liber_feast.online_values import EncodedRows, encode_rows, entity_keys

if TYPE_CHECKING:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

_FEAST = "feast.infra.online_stores."
_WRITERS = {
    f"{_FEAST}sqlite.SqliteOnlineStore": ("liber_feast.online_sqlite", "SqliteWriter"),
    f"{_FEAST}redis.RedisOnlineStore": ("liber_feast.online_redis", "RedisWriter"),
    f"{_FEAST}postgres_online_store.postgres.PostgreSQLOnlineStore": ("liber_feast.online_postgres", "PostgresWriter"),
}
"""Our writer of a store's class; its module imports the store's client."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class OnlineWriter(Protocol):
    """How rows get into one kind of online store."""

    def write(self, view: FeatureView, rows: EncodedRows, *, force: bool = False) -> int:
        """Write the rows that are not older than what is online, all of them `force`d; return how many."""
        ...

    def write_together(self, batches: Sequence[tuple[FeatureView, EncodedRows]], *, force: bool = False) -> int:
        """Do as `write` for several views: all of it or, where the store has transactions, nothing."""
        ...

    def delete(self, view: FeatureView, keys: Sequence[bytes]) -> int:
        """Delete the rows of serialized entity keys; return how many there were."""
        ...

    def erase(self, views: Sequence[FeatureView]) -> None:
        """Remove what was deleted of the views from the files of the store, too."""
        ...

    def close(self) -> None:
        """Give back connections; the next write opens them again."""
        ...


class FeastOnlineSink:
    """Writes rows of feature views to Feast's online store; views that are not online are passed over."""

    def __init__(self, *, store: OnlineStore, config: RepoConfig, views: Mapping[str, FeatureView]) -> None:
        self._store, self._config, self._views = store, config, views

    def write(
        self, view: str, rows: pa.Table, *, number: int | Sequence[int] | None = None, force: bool = False
    ) -> None:
        """Write the rows of a view: its join keys, features, event_timestamp and created_timestamp.

        A row replaces the one of its user that is online where its order (event_timestamp, `number`) is not lower.
        `number` is one for all rows or one of each; None: their created_timestamp, in microseconds. With `force` it
        replaces in any case.

        Raises:
            OnlineStoreAway: the store does not answer.
            StoreFailure: the store cannot be written.
            StoreNotReady: the store lacks the view.
        """
        found = self._online_view(view)
        if found is not None and len(rows):
            self._writer.write(found, encode_rows(found, rows, number=number), force=force)

    def write_together(self, rows: Mapping[str, pa.Table]) -> None:
        """Do as `write` for several views, without a number: all of it or, where the store has transactions, nothing.

        Raises:
            OnlineStoreAway, StoreFailure, StoreNotReady: as `write`.
        """
        views = [(self._online_view(view), some) for view, some in rows.items() if len(some)]
        batches = [(view, encode_rows(view, some, number=None)) for view, some in views if view is not None]
        if batches:
            self._writer.write_together(batches)

    def delete(self, user_ids: Sequence[str | int]) -> int:
        """Delete the rows of the users in every view of users that the plugin fills; return how many there were.

        Raises:
            OnlineStoreAway, StoreFailure, StoreNotReady: as `write`.
        """
        gone = 0
        for view in self._views.values():
            if view.online and STAGE in view.tags and _is_of_users(view):
                gone += self._writer.delete(view, entity_keys(view, user_ids))
        return gone

    def erase(self) -> None:
        """Remove what was deleted from the files of the store, too; other writers may wait meanwhile.

        Raises:
            OnlineStoreAway, StoreFailure, StoreNotReady: as `write`.
        """
        self._writer.erase([view for view in self._views.values() if view.online and STAGE in view.tags])

    def close(self) -> None:
        """Give back connections; the next write opens them again."""
        self._writer.close()

    def _online_view(self, name: str) -> FeatureView | None:
        found = self._views.get(name)
        return found if found is not None and found.online else None

    @cached_property
    def _writer(self) -> OnlineWriter:
        return open_writer(self._store, self._config)


def _is_of_users(view: FeatureView) -> bool:
    return view.tags[STAGE] != ITEM_TEXT


def open_writer(store: OnlineStore, config: RepoConfig) -> OnlineWriter:
    """Return what writes to a store."""
    kind = known_kind(store, config)
    if kind is None:
        return FeastWriter(store, config)
    module, name = _WRITERS[kind]
    writer: OnlineWriter = getattr(import_module(module), name)(config)
    return writer


def known_kind(store: OnlineStore, config: RepoConfig) -> str | None:
    """Return the full name of a store's class, None where we do not know how it keeps rows."""
    block, kind = config.online_store, f"{type(store).__module__}.{type(store).__qualname__}"
    if getattr(block, "vector_enabled", False) or getattr(block, "enable_openai_compatible_store", False):
        return None  # has columns of its own, which Feast fills
    return kind if kind in _WRITERS else None


def let_go_of_lost(store: OnlineStore) -> bool:
    """Let Feast's store open its connection anew, if it has one that is no longer open; return whether it had."""
    connection = getattr(store, "_conn", None)
    if not getattr(connection, "closed", False):
        return False
    store._conn = None  # type: ignore[attr-defined]  # as before its first read
    return True


class FeastWriter:
    """Writes as Feast does, for stores without a writer of ours: of two writers at once the later one stays."""

    def __init__(self, store: OnlineStore, config: RepoConfig) -> None:
        self._store, self._config = store, config

    def write(self, view: FeatureView, rows: EncodedRows, *, force: bool = False) -> int:
        """Write the rows, as new as they are."""
        del force
        written: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
            (
                deserialize_entity_key(key),
                {name: Value.FromString(values[place]) for name, values in rows.features.items()},
                _EPOCH + timedelta(microseconds=rows.event_times[place]),
                _EPOCH + timedelta(microseconds=rows.numbers[place]),
            )
            for place, key in enumerate(rows.keys)
        ]
        self._store.online_write_batch(self._config, view, written, None)
        return len(written)

    def write_together(self, batches: Sequence[tuple[FeatureView, EncodedRows]], *, force: bool = False) -> int:
        """Do as `write`, one view after the other."""
        return sum(self.write(view, rows, force=force) for view, rows in batches)

    def delete(self, view: FeatureView, keys: Sequence[bytes]) -> int:
        """Empty the rows of the keys: Feast has no way to delete one. Return how many there were."""
        found = self._store.online_read(self._config, view, [deserialize_entity_key(key) for key in keys], None)
        there = [key for key, (time, _) in zip(keys, found, strict=True) if time is not None]
        now = (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)
        rows = EncodedRows(
            keys=there,
            event_times=[now] * len(there),
            numbers=[now] * len(there),
            features={field.name: [b""] * len(there) for field in view.features},
            texts={},
        )
        return self.write(view, rows) if there else 0

    def erase(self, views: Sequence[FeatureView]) -> None:
        """Leave it to the store."""

    def close(self) -> None:
        """Leave the connections, which are Feast's."""
