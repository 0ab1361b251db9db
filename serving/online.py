"""Read one feature service online, by key: a user's features in one read, items' attributes in another.

Feast's `get_online_features` wants every join key of a service at once and would so repeat the user's row beside
each candidate. The views of the service are therefore read by their key.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feast import FeatureStore, FeatureView
from feast.errors import FeastError, FeastObjectNotFoundException
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from liber_feast.behavior import ITEM, USER
from liber_feast.errors import ArtifactError, ConfigError, StoreNotReady
from liber_feast.offline_read import locate, open_snapshot
from liber_feast.repo import open_applied_store

USER_PROFILE, BEHAVIOR_SEQUENCE, FUSED_VECTOR = "user_profile", "behavior_sequence", "fused_vector"
FUSION_VERSION = "fusion_version"
SAMPLED_ROW_COUNT = 64
"""Rows of the published fused vectors that are looked at for users to compare versions with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineRow:
    """What the online store holds of one user or one item."""

    values: Mapping[str, Any]
    """The key and every feature of the service's views of that key; None where there is no value."""
    views: frozenset[str]
    """The views that have a row of this key; empty where nobody has seen it."""


class OnlineFeatures:
    """The views of one feature service, read by key; safe to use from several threads."""

    def __init__(self, store: FeatureStore, *, service: str) -> None:
        """Look up the views of `service`.

        Raises:
            ArtifactError: the store has no such feature service.
        """
        self.service = service
        self._store = store
        self._names = _names_by_key(store, service=service)

    @property
    def user_features(self) -> frozenset[str]:
        """The names of all features that are kept by user."""
        return frozenset(name for names in self._names[USER].values() for name in names)

    @property
    def item_features(self) -> frozenset[str]:
        """The names of all features that are kept by item."""
        return frozenset(name for names in self._names[ITEM].values() for name in names)

    def users(self, user_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the features of users, in their order, with one read of the store."""
        return self._read(USER, user_ids)

    def items(self, item_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the attributes of items, in their order, with one read of the store."""
        return self._read(ITEM, item_ids)

    def published_fusion_versions(self) -> frozenset[str]:
        """Return the fusion versions found online for some users with a fused vector; empty where none is known."""
        rows = self.users(self._fused_users())
        return frozenset(row.values[FUSION_VERSION] for row in rows if FUSED_VECTOR in row.views)

    def _fused_users(self) -> list[str]:
        """Return a few users of the published table; the online store itself cannot list its keys."""
        if FUSED_VECTOR not in self._names[USER]:
            return []
        view = _view(self._store, FUSED_VECTOR)
        try:
            published = open_snapshot(locate(view.batch_source, config=self._store.config, view=view))
        except (ConfigError, StoreNotReady):  # published elsewhere than in files, or not yet
            return []
        rows = published.dataset.head(SAMPLED_ROW_COUNT, columns=[USER])
        return list(dict.fromkeys(rows[USER].to_pylist()))

    def _read(self, key: str, ids: Sequence[str]) -> list[OnlineRow]:
        names = self._names[key]
        if not names or not ids:
            return [OnlineRow(values={key: name}, views=frozenset()) for name in ids]
        response = self._store.get_online_features(
            features=[f"{view}:{name}" for view, features in names.items() for name in features],
            entity_rows={key: list(ids)},
        )
        columns = response.to_dict()
        there = dict(zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True))
        # A view's row is there or not as a whole; its first feature tells.
        statuses = {view: there[features[0]].statuses for view, features in names.items()}
        return [
            OnlineRow(
                values={name: column[row] for name, column in columns.items()},
                views=frozenset(view for view, status in statuses.items() if status[row] == FieldStatus.PRESENT),
            )
            for row in range(len(ids))
        ]


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
    except (FeastError, OSError, sqlite3.Error) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise StoreNotReady(
            f"{repo}: the feature store cannot be read: {reason}. Run `feast apply` in it, then `feast materialize`."
        ) from error
    return features


def _names_by_key(store: FeatureStore, *, service: str) -> dict[str, dict[str, list[str]]]:
    """Return the features of each view of `service`, by view, by join key."""
    try:
        projections = store.get_feature_service(service).feature_view_projections
    except FeastObjectNotFoundException as error:
        have = ", ".join(sorted(found.name for found in store.list_feature_services())) or "none"
        raise ArtifactError(
            f"feature service {service!r}, which the run was trained on, is not in the store (it has: {have})."
            " Define it in the feature repo and run `feast apply`."
        ) from error
    names: dict[str, dict[str, list[str]]] = {USER: {}, ITEM: {}}
    for projection in projections:
        keys = _view(store, projection.name).join_keys
        if len(keys) != 1 or keys[0] not in names:
            raise ArtifactError(
                f"feature service {service!r}: view {projection.name!r} has the join keys {', '.join(keys) or 'none'};"
                f" serving reads views of {USER} or {ITEM} alone."
            )
        names[keys[0]][projection.name_to_use()] = [field.name for field in projection.features]
    return names


def _view(store: FeatureStore, name: str) -> FeatureView:
    view = store.registry.get_any_feature_view(name, store.project, allow_cache=True)
    if not isinstance(view, FeatureView):
        raise ArtifactError(f"feature view {name!r} is computed on demand; serving reads stored views alone.")
    return view
