"""Read one feature service online, by key: a user's features in one read, items' attributes in another.

Feast's `get_online_features` wants every join key of a service at once and would so repeat the user's row beside
each candidate. The views of the service are therefore read by their key.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc
from feast import FeatureStore, FeatureView
from feast.errors import FeastError, FeastObjectNotFoundException
from google.protobuf.message import DecodeError
from psycopg import Error as PostgresError
from redis.exceptions import RedisError

from liber_feast.behavior import ITEM, USER
from liber_feast.errors import ArtifactError, ConfigError, OnlineStoreAway, StoreNotReady, one_line
from liber_feast.offline_read import Snapshot, locate, open_snapshot
from liber_feast.repo import open_applied_store, service_schema
from liber_feast.service_schema import Schema
from serving.rows import ReadView, Row, open_rows

USER_PROFILE, BEHAVIOR_SEQUENCE, FUSED_VECTOR = "user_profile", "behavior_sequence", "fused_vector"
FUSION_VERSION = "fusion_version"
READ_ERRORS = (FeastError, OSError, sqlite3.Error, RedisError, PostgresError, DecodeError)
"""What Feast and the clients of its online stores raise where a store cannot be read."""
SAMPLED_ROW_COUNT = 64
"""Rows of the published fused vectors that are looked at for users to compare versions with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineRow:
    """What the online store holds of one user or one item."""

    values: Mapping[str, Any]
    """The key and every feature of the service's views of that key; None where there is no value."""
    views: frozenset[str]
    """The views that have a row of this key; empty where nobody has seen it."""


class FeatureReader(Protocol):
    """Reads one feature service; `OnlineFeatures` is one."""

    @property
    def service(self) -> str:
        """The name of the feature service."""
        ...

    @property
    def user_features(self) -> frozenset[str]:
        """The names of all features that are kept by user."""
        ...

    @property
    def item_features(self) -> frozenset[str]:
        """The names of all features that are kept by item."""
        ...

    def users(self, user_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the features of users, in their order, with one read of the store; OnlineStoreAway if it is away."""
        ...

    def items(self, item_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the attributes of items, in their order, with one read of the store; OnlineStoreAway likewise."""
        ...

    def published_versions(self, view_name: str, feature: str) -> frozenset[str]:
        """Return the values of a version feature found online for some rows of a view; empty where none is known."""
        ...

    def current_schema(self) -> Schema:
        """Return the type of each feature of the service, by `view:feature`, as the registry has it now."""
        ...


class OnlineFeatures:
    """The views of one feature service, read by key; safe to use from several threads."""

    def __init__(self, store: FeatureStore, *, service: str) -> None:
        """Look up the views of `service`.

        Raises:
            ArtifactError: the store has no such feature service.
        """
        self._service, self._store = service, store
        self._views = _views_by_key(store, service=service)
        self._rows = {key: open_rows(store, views) for key, views in self._views.items() if views}
        self._owners = {
            key: {name: one.name for one in views for name in one.features} for key, views in self._views.items()
        }

    @property
    def service(self) -> str:
        """The name of the feature service."""
        return self._service

    @property
    def user_features(self) -> frozenset[str]:
        """The names of all features that are kept by user."""
        return frozenset(self._owners[USER])

    @property
    def item_features(self) -> frozenset[str]:
        """The names of all features that are kept by item."""
        return frozenset(self._owners[ITEM])

    def users(self, user_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the features of users, in their order, with one read of the store.

        Raises:
            OnlineStoreAway: the store does not answer, or cannot be read.
        """
        return self._read(USER, user_ids)

    def items(self, item_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the attributes of items, in their order, with one read of the store; raises as `users`."""
        return self._read(ITEM, item_ids)

    def user_values(self, user_id: str) -> dict[str, Any]:
        """Return the features of a user by `view__feature`, None where the view has no row; raises as `users`."""
        with _reading():
            (rows,) = self._rows[USER].read([user_id])
        return {
            f"{one.name}__{name}": rows.get(one.name, {}).get(name)
            for one in self._views[USER]
            for name in one.features
        }

    def published_versions(self, view_name: str, feature: str) -> frozenset[str]:
        """Return the values of a version feature found online for some rows of a view; empty where none is known.

        Raises:
            OnlineStoreAway: the store does not answer.
        """
        try:
            view = self._view(view_name)
            ids = self._some_ids(view)
        except (ConfigError, StoreNotReady):  # no such view, published elsewhere than in files, or not yet
            return frozenset()
        if not ids:
            return frozenset()
        with _reading():
            response = self._store.get_online_features(
                features=[f"{view_name}:{feature}"], entity_rows={view.join_keys[0]: ids}
            )
        return frozenset(response.to_dict()[feature]) - {None}

    def current_schema(self) -> Schema:
        """Return the type of each feature of the service, by `view:feature`, as the registry has it now.

        Raises:
            ArtifactError: the service is gone.
            OnlineStoreAway: the registry cannot be read.
        """
        with _reading():
            self._store.refresh_registry()
            try:
                return service_schema(self._store, self._service)
            except FeastObjectNotFoundException as error:
                raise ArtifactError(
                    f"feature service {self._service!r} is not in the store any more. Define it again and run `feast"
                    " apply`."
                ) from error

    def published_rows(self, view_name: str, user_id: str) -> list[dict[str, Any]]:
        """Return the rows of one user in the published table of a view, of every version.

        Raises:
            StoreNotReady: there is no such view or table.
            ConfigError: the table cannot be read.
        """
        published = self._published(self._view(view_name))
        rows: list[dict[str, Any]] = published.dataset.to_table(filter=pc.field(USER) == user_id).to_pylist()
        return rows

    def _view(self, name: str) -> FeatureView:
        try:
            return _view(self._store, name)
        except FeastError as error:
            raise StoreNotReady(f"the store has no feature view {name!r}.") from error

    def _published(self, view: FeatureView) -> Snapshot:
        return open_snapshot(locate(view.batch_source, config=self._store.config, view=view))

    def _some_ids(self, view: FeatureView) -> list[str]:
        """Return a few ids of the published table; the online store itself cannot list its keys."""
        (key,) = view.join_keys
        rows = self._published(view).dataset.head(SAMPLED_ROW_COUNT, columns=[key])
        return list(dict.fromkeys(rows[key].to_pylist()))

    def _read(self, key: str, ids: Sequence[str]) -> list[OnlineRow]:
        if key not in self._rows or not ids:
            return [OnlineRow(values={key: name}, views=frozenset()) for name in ids]
        with _reading():
            found = self._rows[key].read(ids)
        owners = self._owners[key]
        return [
            OnlineRow(values=_Values(key, name, owners=owners, rows=rows), views=frozenset(rows))
            for name, rows in zip(ids, found, strict=True)
        ]


class _Values(Mapping[str, Any]):
    """The key and every feature of a user or an item, from its rows; None of a view that has none."""

    __slots__ = ("_id", "_key", "_owners", "_rows")

    def __init__(self, key: str, name: str, *, owners: Mapping[str, str], rows: Mapping[str, Row]) -> None:
        self._key, self._id, self._owners, self._rows = key, name, owners, rows

    def __getitem__(self, name: str) -> Any:
        if name == self._key:
            return self._id
        row = self._rows.get(self._owners[name])
        return None if row is None else row[name]

    def __iter__(self) -> Iterator[str]:
        yield self._key
        yield from self._owners

    def __len__(self) -> int:
        return len(self._owners) + 1


def open_features(repo: Path, *, service: str) -> OnlineFeatures:
    """Return the online features of `service` in the feature repo `repo`, which nothing is written to.

    Raises:
        StoreNotReady: no feature repo, one that was never applied, or an online store that cannot be read.
        ConfigError: its feature_store.yaml cannot be used.
        ArtifactError: the store has no such feature service.
    """
    store = open_applied_store(repo)
    try:
        features = OnlineFeatures(store, service=service)
        features.users(["\0"])
    except (*READ_ERRORS, OnlineStoreAway) as error:
        reason = one_line(error).removeprefix("the online store cannot be read: ")
        raise StoreNotReady(
            f"{repo}: the feature store cannot be read: {reason}. Run `feast apply` in it, then `feast materialize`."
        ) from error
    return features


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise OnlineStoreAway(f"the online store cannot be read: {one_line(error)}") from error


def _views_by_key(store: FeatureStore, *, service: str) -> dict[str, list[ReadView]]:
    """Return the views of `service` and their features, by join key."""
    try:
        projections = store.get_feature_service(service).feature_view_projections
    except FeastObjectNotFoundException as error:
        have = ", ".join(sorted(found.name for found in store.list_feature_services())) or "none"
        raise ArtifactError(
            f"feature service {service!r}, which the run was trained on, is not in the store (it has: {have})."
            " Define it in the feature repo and run `feast apply`."
        ) from error
    views: dict[str, list[ReadView]] = {USER: [], ITEM: []}
    for projection in projections:
        view = _view(store, projection.name)
        keys = view.join_keys
        if len(keys) != 1 or keys[0] not in views:
            raise ArtifactError(
                f"feature service {service!r}: view {projection.name!r} has the join keys {', '.join(keys) or 'none'};"
                f" serving reads views of {USER} or {ITEM} alone."
            )
        views[keys[0]].append(ReadView(view=view, features=tuple(field.name for field in projection.features)))
    for found in views.values():
        _check_names(found, service=service)
    return views


def _check_names(views: Sequence[ReadView], *, service: str) -> None:
    owners: dict[str, str] = {}
    for one in views:
        for name in one.features:
            if name in owners:
                raise ArtifactError(
                    f"feature service {service!r}: views {owners[name]!r} and {one.name!r} both have a feature"
                    f" {name!r}. Leave one of them out of the service."
                )
            owners[name] = one.name


def _view(store: FeatureStore, name: str) -> FeatureView:
    view = store.registry.get_any_feature_view(name, store.project, allow_cache=True)
    if not isinstance(view, FeatureView):
        raise ArtifactError(f"feature view {name!r} is computed on demand; serving reads stored views alone.")
    return view
