"""Small feature repos on files, for the tests of the offline store."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FileSource, RepoConfig, ValueType
from feast.data_format import DeltaFormat, ParquetFormat

LIBER = "liber_feast.offline_store.LiberOfflineStore"
START = datetime(2024, 1, 1, tzinfo=UTC)
MICROSECONDS = pa.timestamp("us", tz="UTC")

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)


def second(count: float) -> datetime:
    return START + timedelta(seconds=count)


def open_store(root: Path, *, offline: str = LIBER, **settings: Any) -> FeatureStore:
    """Return a store without objects; `settings` are further keys of feature_store.yaml."""
    config = RepoConfig(
        project="small",
        provider="local",
        registry=str(root / f"registry-{offline}.db"),
        offline_store={"type": offline},
        online_store={"type": "sqlite", "path": str(root / f"online-{offline}.db")},
        entity_key_serialization_version=3,
        repo_path=root,
        **settings,
    )
    return FeatureStore(config=config)


def parquet(path: str, **options: Any) -> FileSource:
    return FileSource(path=path, file_format=ParquetFormat(), timestamp_field="event_timestamp", **options)


def delta(path: str, **options: Any) -> FileSource:
    return FileSource(path=path, file_format=DeltaFormat(), timestamp_field="event_timestamp", **options)


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def times(seconds: Iterable[float | None], kind: pa.DataType = MICROSECONDS) -> pa.Array:
    micros = [
        None if count is None else round((second(count) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
        for count in seconds
    ]
    return pa.array(micros, pa.timestamp("us")).cast(pa.timestamp(kind.unit)).cast(kind)


def entity_frame(users: list[Any], seconds: list[float], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"user_id": pd.Series(users, dtype=object), "event_timestamp": [second(count) for count in seconds], **columns}
    )


def rows_of(store: FeatureStore, frame: pd.DataFrame | None, features: Any, **options: Any) -> list[dict[str, Any]]:
    table = store.get_historical_features(entity_df=frame, features=features, **options).to_arrow()
    table.validate(full=True)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
