"""What a feature service consists of, so that a run can say what it was trained on and a store whether it still is."""

import hashlib
import json
from collections.abc import Mapping

Schema = Mapping[str, str]
"""The type of each feature, by `view:feature`."""


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
