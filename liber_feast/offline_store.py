"""Feast's offline store on Parquet and Delta files: point-in-time joins as one sorted pass per view.

Feast finds the class and its config by name (`type` in feature_store.yaml). Everything that is not Feast's
interface lies in `offline_read`, `offline_entities`, `offline_candidates`, `offline_join` and `offline_write`.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import _parse_feature_ref, compute_non_entity_date_range

from liber_feast import feast_cli
from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.offline_candidates import ViewRequest
from liber_feast.offline_entities import EntityFrame, EntityRows, check_keys, entity_rows, join_keys, rows_of_window
from liber_feast.offline_join import StageLimits, join_view
from liber_feast.offline_pull import Pull
from liber_feast.offline_read import Snapshot, feast_types, locate, open_snapshot
from liber_feast.offline_write import add_files, append, save

logger = logging.getLogger(__name__)

INSTEAD = "use to_arrow(), to_df(), or persist() with a path"


class LiberOfflineStoreConfig(FeastConfigBaseModel):
    """The `offline_store` block of feature_store.yaml; it has no key but the type."""

    type: str = "liber_feast.offline_store.LiberOfflineStore"


class LiberRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for, as Arrow; each run reads one snapshot of each source."""

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        *,
        config: RepoConfig,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        super().__init__()
        self._evaluate, self._config = evaluate, config
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002  # Feast's interface
        return self._evaluate()

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result, on-demand features included, to Parquet or Delta."""
        location = locate(storage.to_data_source(), config=self._config)
        save(self.to_arrow(timeout=timeout), location=location, overwrite=allow_overwrite)

    def to_sql(self) -> str:
        """Refuse: there is no SQL behind a join of files."""
        raise NotImplementedError(f"the offline store joins files and has no SQL; {INSTEAD}.")

    def to_remote_storage(self) -> list[str]:
        """Refuse: there is no staging location; `supports_remote_storage_export` says so beforehand."""
        raise NotImplementedError(f"the offline store has no staging location; {INSTEAD}.")


class LiberOfflineStore(OfflineStore):
    """Point-in-time retrieval from FileSource (Parquet, Delta)."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: EntityFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Join features to every row of `entity_df`, or to the keys and times that have feature rows in a window.

        The result has the entity frame's rows in their order, its columns, then the features. A frame without its
        time or a key is refused here, what is found wrong in a source when the result is asked for.
        """
        requests = _requests(feature_views, feature_refs, cut_by_created=filter_by_created_timestamp)
        frame = _frame(entity_df, views=feature_views, start=start_date, end=end_date)
        return LiberRetrievalJob(
            lambda: _evaluate(requests, frame.rows, config=config, full_feature_names=full_feature_names),
            config=config,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(feature_refs, list(dict.fromkeys(frame.keys)), *frame.time_range),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return the latest row of every key within [start_date, end_date]."""
        pull = Pull(
            config=config,
            source=data_source,
            keys=join_key_columns,
            features=feature_name_columns,
            time=timestamp_field,
            created=created_timestamp_column or None,
            start=start_date,
            end=end_date,
        )
        return LiberRetrievalJob(pull.latest, config=config)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return every row within [start_date, end_date]."""
        pull = Pull(
            config=config,
            source=data_source,
            keys=join_key_columns,
            features=feature_name_columns,
            time=timestamp_field,
            created=created_timestamp_column or None,
            start=start_date,
            end=end_date,
        )
        return LiberRetrievalJob(pull.rows, config=config)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the view's batch source."""
        append(table, location=locate(feature_view.batch_source, config=config, view=feature_view))
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,  # noqa: ARG004  # Feast's interface
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004  # Feast's interface
    ) -> None:
        """Add logged features to the destination, a folder of Parquet files."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise ConfigError(
                f"feature logging: the destination is {type(destination).__name__}; use FileLoggingDestination."
            )
        table = pq.read_table(data) if isinstance(data, Path) else data
        location = locate(destination.to_data_source(), config=config)
        add_files(table, location=location, partition_by=destination.partition_by)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Refuse a source that can never be read; one that is not there yet may still be written."""
        location = locate(data_source, config=config)
        try:
            snapshot = open_snapshot(location)
        except StoreNotReady:
            logger.debug("%s: nothing at %s yet", location.owner, location.path)
            return
        if data_source.timestamp_field:
            snapshot.column(data_source.timestamp_field)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Return (column, type as text) of a source; Feast infers the features of views without a schema from it."""
        return feast_types(open_snapshot(locate(data_source, config=config)).dataset.schema)


def stage_limits(config: RepoConfig) -> StageLimits:
    """Return the lengths of the computed lists from the engine block, as it stands in feature_store.yaml.

    Raises:
        ConfigError: a length that is not a whole number above 0.
    """
    block = config.batch_engine_config if isinstance(config.batch_engine_config, dict) else {}
    sequence = block.get("sequence") or {}
    defaults = StageLimits()
    found = {
        "sequence.length": sequence.get("length", defaults.sequence_length),
        "memory_window": block.get("memory_window", defaults.memory_window),
    }
    for name, value in found.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"batch_engine: {name} is {value!r}; it must be a whole number above 0.")
    return StageLimits(sequence_length=found["sequence.length"], memory_window=found["memory_window"])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Where entity rows come from: a frame that was given, or the sources once they are open."""

    rows: Callable[[Sequence[Snapshot]], EntityRows]
    keys: list[str]
    time_range: tuple[datetime, datetime]


def _frame(
    entity_df: EntityFrame | str | None,
    *,
    views: Sequence[FeatureView],
    start: datetime | None,
    end: datetime | None,
) -> _Frame:
    if isinstance(entity_df, str):
        raise ConfigError("entity frame: files have no SQL engine; pass a pandas DataFrame instead of a query.")
    if entity_df is None:
        first, last = compute_non_entity_date_range(list(views), start_date=start, end_date=end)
        return _Frame(
            rows=lambda snapshots: rows_of_window(views, snapshots=snapshots, start=first, end=last),
            keys=[key.frame_name for view in views for key in join_keys(view)],
            time_range=(first, last),
        )
    given = entity_rows(entity_df)
    check_keys(given, views)
    keys = [name for name in given.table.column_names if name != given.time_column]
    return _Frame(rows=lambda _: given, keys=keys, time_range=given.time_range)


def _requests(views: Sequence[FeatureView], refs: Sequence[str], *, cut_by_created: bool) -> list[ViewRequest]:
    wanted: dict[str, list[str]] = {_projected(view): [] for view in views}
    for ref in refs:
        name, version, feature = _parse_feature_ref(ref)
        full = name if version is None else f"{name}@v{version}"
        if full in wanted:  # features of on-demand views are computed by Feast afterwards
            wanted[full].append(feature)
    return [
        ViewRequest(view=view, features=tuple(wanted[_projected(view)]), cut_by_created=cut_by_created)
        for view in views
    ]


def _projected(view: FeatureView) -> str:
    return str(view.projection.name_to_use())


def _evaluate(
    requests: Sequence[ViewRequest],
    rows: Callable[[Sequence[Snapshot]], EntityRows],
    *,
    config: RepoConfig,
    full_feature_names: bool,
) -> pa.Table:
    limits, snapshots = stage_limits(config), _open_all(requests, config=config)
    entities = rows(snapshots)
    table = entities.table
    for request, snapshot in zip(requests, snapshots, strict=True):
        view = request.view
        prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
        columns = join_view(request, rows=entities, snapshot=snapshot, limits=limits)
        for feature, column in zip(request.features, columns, strict=True):
            if prefix + feature in table.column_names:
                raise ConfigError(
                    f"feature view {view.name!r}: feature {feature!r} has the name of another column of the result."
                    " Ask with full_feature_names=True, or rename the column of the entity frame."
                )
            table = table.append_column(prefix + feature, column)
    return table


def _open_all(requests: Sequence[ViewRequest], *, config: RepoConfig) -> list[Snapshot]:
    """Open the source of every view; views on one table see one snapshot of it."""
    opened: dict[str, Snapshot] = {}
    snapshots = []
    for request in requests:
        location = locate(request.view.batch_source, config=config, view=request.view)
        if location.path not in opened:
            opened[location.path] = open_snapshot(location)
        snapshots.append(replace(opened[location.path], location=location))
    return snapshots


# Feast imports this module while it reads feature_store.yaml, before anything that a user can get wrong.
feast_cli.install(sys.argv[0])
