"""Read what the online store holds of some users or items, of all their views at once.

Feast reads a SQLite store view by view, and makes messages of every value that it then turns into Python's. Here a
statement, or for Redis a command for each key in one round trip, reads all views as they are at one moment, and a value
is decoded when it is asked for. Rows and values are those that Feast keeps and returns; other stores are read by Feast.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from feast import FeatureStore, FeatureView
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.value_type import ValueType

from liber_feast.online import known_kind
from liber_feast.online_sqlite import quoted, table_of
from liber_feast.online_values import can_encode, entity_keys

KEYS_PER_STATEMENT = 4_096
"""SQLite takes 32,766 in one. A power of two, as the number of keys in each is: so there are few statements."""
LOCK_SECONDS = 5.0
Row = Mapping[str, Any]
"""The values of one view's row by feature."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReadView:
    """A view and those of its features that are read."""

    view: FeatureView
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        """The view's own name."""
        return str(self.view.name)

    @property
    def types(self) -> dict[str, ValueType]:
        """The type of each feature that is read."""
        return {field.name: field.dtype.to_value_type() for field in self.view.features if field.name in self.features}


class RowReader(Protocol):
    """Reads the rows of some views that have one join key in common."""

    def read(self, ids: Sequence[str]) -> list[dict[str, Row]]:
        """Return for each id its row in each view, by the view's name; a view without a row of it is left out."""
        ...


def open_rows(store: FeatureStore, views: Sequence[ReadView]) -> RowReader:
    """Return what reads the rows of `views`, which have one join key in common."""
    kind = known_kind(store._get_provider().online_store, store.config) or ""
    columns = {(column.name, column.dtype) for one in views for column in one.view.entity_columns}
    if len(columns) == 1 and can_encode(*(dtype for _, dtype in columns)):
        if kind.endswith(".SqliteOnlineStore"):
            return SqliteRows(store, views)
        if kind.endswith(".RedisOnlineStore") and getattr(store.config.online_store, "client", "redis") == "redis":
            from serving.rows_redis import RedisRows  # noqa: PLC0415  # imports Feast's store and its client

            return RedisRows(store, views)
    return FeastRows(store, views)


class Encoded(Mapping[str, Any]):
    """The row of a view as it is kept; a value is decoded when it is first asked for, and None if it is not there."""

    __slots__ = ("_decoded", "_kept", "_types")

    def __init__(self, kept: Mapping[str, bytes | None], types: Mapping[str, ValueType]) -> None:
        self._kept, self._types = kept, types
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._decoded:
            kind, kept = self._types[name], self._kept.get(name)
            self._decoded[name] = feast_value_type_to_python_type(Value.FromString(kept), kind) if kept else None
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)


def keys_of(view: FeatureView, ids: Sequence[str]) -> list[bytes | None]:
    """Return the key of each id, None for one that is none of the type that the view has."""
    try:
        return list(entity_keys(view, ids))
    except ValueError:
        return [_key(view, one) for one in ids]


def _key(view: FeatureView, one: str) -> bytes | None:
    try:
        return entity_keys(view, [one])[0]
    except ValueError:
        return None


class SqliteRows:
    """Reads with a connection for each thread, all views in one statement."""

    def __init__(self, store: FeatureStore, views: Sequence[ReadView]) -> None:
        config = store.config
        self._views = list(views)
        self._types = [one.types for one in views]
        self._path = Path(type(store._get_provider().online_store)._get_db_path(config))  # type: ignore[attr-defined]
        tables = [table_of(one.view, config=config) for one in views]
        self._statement = _statement_of(tables, [one.features for one in views])
        self._opened = threading.local()

    def read(self, ids: Sequence[str]) -> list[dict[str, Row]]:
        """Return for each id its row in each view.

        Raises:
            sqlite3.Error: the file cannot be read, is locked for too long, or lacks a table.
        """
        keys = keys_of(self._views[0].view, ids)
        distinct = list(dict.fromkeys(key for key in keys if key is not None))
        kept: dict[tuple[int, bytes], dict[str, bytes]] = {}
        for start in range(0, len(distinct), KEYS_PER_STATEMENT):
            some = distinct[start : start + KEYS_PER_STATEMENT]
            some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
            for place, key, name, value in self._connection().execute(self._statement(len(some)), some):
                kept.setdefault((place, key), {})[name] = value
        return [self._rows(key, kept) for key in keys]

    def _rows(self, key: bytes | None, kept: Mapping[tuple[int, bytes], Mapping[str, bytes]]) -> dict[str, Row]:
        return {
            one.name: Encoded(kept[place, key], self._types[place])
            for place, one in enumerate(self._views)
            if key is not None and (place, key) in kept
        }

    def _connection(self) -> sqlite3.Connection:
        file = os.stat(self._path).st_ino  # `feast teardown` deletes the file
        opened: tuple[int, int, sqlite3.Connection] | None = getattr(self._opened, "last", None)
        if opened is not None and opened[:2] == (os.getpid(), file):
            return opened[2]
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw", uri=True, timeout=LOCK_SECONDS, isolation_level=None
        )
        connection.execute("PRAGMA query_only=ON")
        self._opened.last = (os.getpid(), file, connection)
        return connection


def _statement_of(tables: Sequence[str], features: Sequence[Sequence[str]]) -> Callable[[int], str]:
    """Return the statement that reads some features of a number of keys from each table."""

    @cache
    def statement(count: int) -> str:
        keys = ", ".join(f"?{number}" for number in range(1, count + 1))
        return " UNION ALL ".join(
            f"SELECT {place}, entity_key, feature_name, value FROM {quoted(table)}"
            f" WHERE entity_key IN ({keys}) AND feature_name IN ({', '.join(map(_literal, names))})"
            for place, (table, names) in enumerate(zip(tables, features, strict=True))
        )

    return statement


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class FeastRows:
    """Reads as Feast does; some of its stores say of a row that is not there that it is, without any value."""

    def __init__(self, store: FeatureStore, views: Sequence[ReadView]) -> None:
        self._store, self._views = store, list(views)

    def read(self, ids: Sequence[str]) -> list[dict[str, Row]]:
        """Return for each id its row in each view; raises what Feast and the store's client raise."""
        columns = self._store.get_online_features(
            features=self._references, entity_rows={self._key: list(ids)}, full_feature_names=True
        ).to_dict()
        found: list[dict[str, Row]] = []
        for place in range(len(ids)):
            rows = {
                one.name: {
                    name: columns[f"{one.view.projection.name_to_use()}__{name}"][place] for name in one.features
                }
                for one in self._views
            }
            found.append({view: row for view, row in rows.items() if any(one is not None for one in row.values())})
        return found

    @cached_property
    def _references(self) -> list[str]:
        return [f"{one.view.name}:{name}" for one in self._views for name in one.features]

    @cached_property
    def _key(self) -> str:
        return str(self._views[0].view.join_keys[0])
