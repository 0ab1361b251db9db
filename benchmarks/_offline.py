"""A feature store with one view over one Parquet file, and measurements in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat

ROOT = Path(__file__).resolve().parents[1]
LIBER = "liber_feast.offline_store.LiberOfflineStore"
START_US = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
SPAN_US = 365 * 24 * 3_600 * 1_000_000
"""Event times lie within a year of START_US, microseconds."""
WARM_UP_ROWS = 100
"""Entity rows joined before a measurement: imports and plans are not measured."""


def open_view(
    folder: Path,
    view_name: str,
    *,
    file: str,
    schema: list[Field],
    offline: str = LIBER,
    created: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> FeatureStore:
    """Return a store whose only view, by `user_id` and without ttl, reads `file` in `folder`."""
    config = RepoConfig(
        project="benchmark",
        provider="local",
        registry=str(folder / f"registry-{offline}.db"),
        offline_store={"type": offline},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = FileSource(
        path=str(folder / file),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column=created or "",
    )
    view = FeatureView(
        name=view_name, entities=[user], ttl=timedelta(0), schema=schema, source=source, tags=dict(tags or {})
    )
    store.apply([user, view])
    return store


def measured_apart(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m MODULE --one ARGUMENTS` and return the JSON object on its last line."""
    command = [sys.executable, "-m", module, "--one", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.decode().splitlines()[-1]))
