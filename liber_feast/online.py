"""The online store as the sink of published rows."""

from collections.abc import Mapping

import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.utils import _convert_arrow_to_proto


class FeastOnlineSink:
    """Writes rows of feature views to Feast's online store; views that are not online are passed over."""

    def __init__(self, *, store: OnlineStore, config: RepoConfig, views: Mapping[str, FeatureView]) -> None:
        self._store, self._config, self._views = store, config, views

    def write(self, view: str, rows: pa.Table) -> None:
        """Write the rows of a view: its join keys, features, event_timestamp and created_timestamp."""
        found = self._views.get(view)
        if found is None or not found.online or not len(rows):
            return
        join_keys = {column.name: column.dtype.to_value_type() for column in found.entity_columns}
        source = found.batch_source
        if source is not None and source.timestamp_field != "event_timestamp":
            rows = rows.append_column(source.timestamp_field, rows["event_timestamp"])
        written = _convert_arrow_to_proto(rows.combine_chunks(), found, join_keys)
        self._store.online_write_batch(self._config, found, written, None)
