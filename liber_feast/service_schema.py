"""What a feature service consists of, so that a run can say what it was trained on and a store whether it still is."""

import hashlib
import json
from collections.abc import Mapping

from feast import FeatureStore

Schema = Mapping[str, str]
"""The type of each feature, by `view:feature`."""


def service_schema(store: FeatureStore, service: str) -> Schema:
    """Return the features of a feature service as the registry has them.

    Raises:
        FeastObjectNotFoundException: there is no such service.
    """
    projections = store.get_feature_service(service).feature_view_projections
    return {
        f"{projection.name_to_use()}:{feature.name}": str(feature.dtype)
        for projection in projections
        for feature in projection.features
    }


def schema_hash(schema: Schema) -> str:
    """Return the hash of a schema; the order of views and features does not matter."""
    return hashlib.sha256(json.dumps(dict(schema), sort_keys=True).encode()).hexdigest()[:16]


def first_difference(trained: Schema, *, found: Schema) -> str | None:
    """Return which feature of `trained` is gone or of another type in `found`, None where none is; more are allowed."""
    for name, kind in sorted(trained.items()):
        if name not in found:
            return f"the feature {name!r} is gone"
        if found[name] != kind:
            return f"the feature {name!r} is {found[name]}, it was {kind}"
    return None
