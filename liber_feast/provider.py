"""The provider: pushes of behaviors go through the memory; everything else is Feast's own."""

import asyncio
import difflib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import FeatureView, FileSource, OnDemandFeatureView, RepoConfig
from feast.base_feature_view import BaseFeatureView
from feast.infra.passthrough_provider import PassthroughProvider
from feast.infra.registry.base_registry import BaseRegistry
from feast.online_response import OnlineResponse

from liber_feast.answers import with_status
from liber_feast.behavior import EVENT_TIME, REQUIRED, USER
from liber_feast.engine import LiberComputeEngine
from liber_feast.errors import ConfigError, InvalidBehaviors
from liber_feast.job import open_registry
from liber_feast.materialize import utc_microseconds
from liber_feast.offline_read import STAGE, locate, open_snapshot
from liber_feast.online import let_go_of_lost
from liber_feast.pushed_rows import as_table, check_fit, quoted, with_times
from liber_feast.sequences import BEHAVIORS

__all__ = ["LiberProvider"]


class LiberProvider(PassthroughProvider):
    """Feast's passthrough provider, with pushed behaviors sent to the memory."""

    def __init__(self, config: RepoConfig) -> None:
        super().__init__(config)
        _refuse_unknown(config)
        _ = config.batch_engine  # reads and checks the whole engine block before Feast writes anything
        self._log: dict[str, pa.DataType] = {}
        """The types of the log's columns, by the names of the behavior schema."""

    def ingest_df(
        self,
        feature_view: BaseFeatureView | FeatureView | OnDemandFeatureView,
        df: pd.DataFrame,
        field_mapping: dict[str, str] | None = None,
    ) -> None:
        """Append pushed behaviors to the memory and write online what follows; other views as Feast does.

        Pushed behaviors have the columns of the log: Feast writes them there after this, and refuses others. Where
        the LLM cannot be used, their texts follow with the next materialization.

        Raises:
            InvalidBehaviors: a row breaks the schema, or the columns are not those of the log; nothing was taken.
            StoreNotReady: there is no log.
            RetryableError, MemoryFailure: the memory cannot be written; see `LiberComputeEngine.push`.
        """
        if not isinstance(feature_view, FeatureView) or feature_view.tags.get(STAGE) != BEHAVIORS:
            super().ingest_df(feature_view, df, field_mapping)
            return
        pushed_time = utc_microseconds()
        with with_status():
            names = self._names(feature_view)
            rows = _named(as_table(df, names=names), names)
            self._check_columns(feature_view, rows)
            self.engine.push(self._registry, rows, view=feature_view, pushed_time=pushed_time)

    async def ingest_df_async(
        self,
        feature_view: BaseFeatureView | FeatureView | OnDemandFeatureView,
        df: pd.DataFrame,
        field_mapping: dict[str, str] | None = None,
    ) -> None:
        """Do as `ingest_df`, outside the event loop."""
        if isinstance(feature_view, FeatureView) and feature_view.tags.get(STAGE) == BEHAVIORS:
            await asyncio.to_thread(self.ingest_df, feature_view, df, field_mapping)
        else:
            await super().ingest_df_async(feature_view, df, field_mapping)

    def get_online_features(self, *given: Any, **named: Any) -> OnlineResponse:
        """Read as Feast does, and once more where the server of a PostgreSQL online store ended the connection.

        Feast would keep that connection, and no read of the process would succeed again.
        """
        try:
            return super().get_online_features(*given, **named)
        except Exception:
            if not let_go_of_lost(self.online_store):
                raise
            return super().get_online_features(*given, **named)

    def ingest_df_to_offline_store(self, feature_view: FeatureView, table: pa.Table) -> None:
        """Append pushed rows to the log, as Feast does; behaviors are checked first, as in `ingest_df`.

        What a tombstone of the memory refuses does not come back into the log either.

        Raises:
            InvalidBehaviors: a row breaks the schema; nothing was written.
            RetryableError, MemoryFailure: the memory, which knows who was forgotten, cannot be read.
        """
        # Feast writes a data frame's index as a column.
        rows = table.select([name for name in table.column_names if not name.startswith("__index_level_")])
        if feature_view.tags.get(STAGE) == BEHAVIORS:
            with with_status():
                named = _named(rows, self._names(feature_view))
                self.engine.check(feature_view, named)
                kept = ~self.engine.is_forgotten(self._registry, named)
            rows = with_times(rows, name=self._source(feature_view).timestamp_field).filter(pa.array(kept))
            if not len(rows):
                return
        super().ingest_df_to_offline_store(feature_view, rows)

    @property
    def engine(self) -> LiberComputeEngine:
        """The compute engine, which holds the job."""
        engine = self.batch_engine
        if not isinstance(engine, LiberComputeEngine):
            raise ConfigError(
                f"feature_store.yaml: batch_engine.type makes a {type(engine).__name__}; LiberProvider needs"
                " liber_feast.engine.LiberComputeEngine."
            )
        return engine

    @cached_property
    def _registry(self) -> BaseRegistry:
        return open_registry(self.repo_config)

    def _source(self, view: FeatureView) -> FileSource:
        return locate(view.batch_source, config=self.repo_config, view=view).source

    def _names(self, view: FeatureView) -> dict[str, str]:
        """Return the names of the behavior schema by the source's own, where they differ."""
        source = self._source(view)
        return {**(source.field_mapping or {}), source.timestamp_field: EVENT_TIME, view.join_keys[0]: USER}

    def _check_columns(self, view: FeatureView, rows: pa.Table) -> None:
        """Refuse columns that the log does not have or cannot hold, and rows without one that it has."""
        pushed = rows.column_names
        if self._log.keys() != set(pushed):  # the log may have changed, so it is opened anew
            mapping, location = self._names(view), locate(view.batch_source, config=self.repo_config, view=view)
            schema = open_snapshot(location).dataset.schema
            self._log = {mapping.get(field.name, field.name): field.type for field in schema}
        for name in pushed:
            if name not in self._log:
                raise InvalidBehaviors(
                    f"push: column {quoted(name)} is not in the log of feature view {view.name!r}; the log has"
                    f" {', '.join(sorted(self._log))}. Add the column to the log, or leave it out.",
                    column=name,
                )
        for name in sorted(self._log.keys() - {*pushed, *REQUIRED}):
            raise InvalidBehaviors(
                f"push: column {name!r} is missing; the log of feature view {view.name!r} has it. Push it too.",
                column=name,
            )
        check_fit(rows, self._log)


def _named(rows: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """Return pushed rows under the names of the behavior schema, their times parsed."""
    named = rows.rename_columns([names.get(name, name) for name in rows.column_names])
    return with_times(named, name=EVENT_TIME)


def _refuse_unknown(config: RepoConfig) -> None:
    """Feast takes any top-level key and ignores those it does not know."""
    allowed = sorted(field.alias or name for name, field in RepoConfig.model_fields.items())
    for key in config.model_extra or ():
        close = difflib.get_close_matches(key, allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"feature_store.yaml: unknown key {key!r}; allowed: {', '.join(allowed)}.{hint}")
