"""The compute engine: `feast materialize` and pushes drive the job; views that are not LIBER's go to Feast's engine."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import RLock
from typing import Any

import pyarrow as pa
from feast import Entity, FeatureView, OnDemandFeatureView
from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from feast.types import Int32, Int64, String
from tqdm import tqdm

from liber_feast.behavior import BEHAVIOR_ID, EVENT_TIME, ITEM, RATING, USER, CheckedBehaviors, check_behaviors
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.errors import BadWindow, InvalidBehaviors, StoreNotReady
from liber_feast.interest import Progress
from liber_feast.job import forget_online, liber_views, open_job, open_registry
from liber_feast.materialize import Job, Report
from liber_feast.offline_pull import Pull
from liber_feast.offline_read import STAGE, locate, open_snapshot

__all__ = ["LiberComputeEngine", "LiberComputeEngineConfig"]

logger = logging.getLogger(__name__)

BEHAVIORS = "behaviors"
ID_TYPES: dict[object, pa.DataType] = {String: pa.string(), Int32: pa.int64(), Int64: pa.int64()}
"""How ids of a view's type lie in a checked table."""


class LiberComputeEngine(ComputeEngine):
    """Runs every LIBER view of a materialization as one job; Feast names the class in `batch_engine.type`."""

    def __init__(
        self, *, repo_config: RepoConfig, offline_store: OfflineStore, online_store: OnlineStore, **feast: Any
    ) -> None:
        del feast  # the raw block; the validated one is in repo_config
        super().__init__(repo_config=repo_config, offline_store=offline_store, online_store=online_store)
        self.config: LiberComputeEngineConfig = repo_config.batch_engine
        self._local = LocalComputeEngine(
            backend="pandas", repo_config=repo_config, offline_store=offline_store, online_store=online_store
        )
        self._job: Job | None = None
        # Of pushes that come at the same time one works and the others wait, so that no text is paid for twice.
        self._working = RLock()

    @property
    def supports_batch(self) -> bool:
        """Feast hands over all views of a materialization at once, so that they are one job.

        It asks at the start of every materialization; of one without views it asks nothing else, and would succeed.

        Raises:
            StoreNotReady: the repo was never applied.
        """
        project = self.repo_config.project
        if not open_registry(self.repo_config).list_all_feature_views(project):
            raise StoreNotReady(f"The registry of project {project!r} has no feature view. Run `feast apply` first.")
        return True

    def update(
        self,
        project: str,
        views_to_delete: Sequence[FeatureView],
        views_to_keep: Sequence[FeatureView | OnDemandFeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
    ) -> None:
        """Make nothing: the memory is made when the first behavior comes, Delta tables with the first rows."""

    def teardown_infra(self, project: str, fvs: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Leave the memory: it holds paid texts. `feast teardown` removes online rows, which can be rebuilt."""
        del project, fvs, entities  # the next materialization writes all of its online rows again
        forget_online(self.repo_config)

    def materialize(
        self, registry: BaseRegistry, tasks: MaterializationTask | list[MaterializationTask], **options: Any
    ) -> list[MaterializationJob]:
        """Run the LIBER views of `tasks` as one job over their window, and Feast's engine for every other view.

        Raises:
            BadWindow: the window ends before it starts.
            LiberError: see `Job`; then no view of `tasks` counts as materialized.
        """
        asked = [tasks] if isinstance(tasks, MaterializationTask) else tasks
        ours = [task for task in asked if STAGE in task.feature_view.tags]
        if ours:
            self._materialize_ours(registry, ours)
        return [
            _done(task) if STAGE in task.feature_view.tags else self._local.materialize(registry, task, **options)[0]
            for task in asked
        ]

    def push(self, registry: BaseRegistry, table: pa.Table) -> Report:
        """Append pushed behaviors; if they fill a cache, make and publish its texts and vectors before returning.

        Raises:
            InvalidBehaviors: a row breaks the schema; nothing was taken.
        """
        job, report = self.job(registry), Report()
        checked = self.check(liber_views(registry, project=self.repo_config.project)[BEHAVIORS], table)
        appended = job.append(checked, report)
        with self._working:
            job.drain(report, user_keys=appended.user_keys)
        if report.duplicate_count or report.late_count:
            logger.info("push: %s", report.line())
        return report

    def check(self, view: FeatureView, table: pa.Table) -> CheckedBehaviors:
        """Return the behaviors of the view `behaviors` in canonical form.

        Raises:
            InvalidBehaviors: a row breaks the schema, or ids are of another type than the view says.
        """
        source, scale = f"feature view {view.name!r}", self.config.behavior.rating_scale()
        checked = check_behaviors(table, scale=scale, now=datetime.now(UTC), source=source)
        declared = {USER: view.entity_columns[0].dtype}
        declared |= {field.name: field.dtype for field in view.features if field.name == ITEM}
        for column, dtype in declared.items():
            found = checked.table.schema.field(column).type
            if len(checked.table) and found != ID_TYPES.get(dtype, found):
                raise InvalidBehaviors(
                    f"{source}: column {column!r} has ids of type {found}, but the view says {dtype}."
                    " Write the ids as that type, or correct the view.",
                    column=column,
                )
        return checked

    def job(self, registry: BaseRegistry) -> Job:
        """Return the job of this feature repo, opened once."""
        with self._working:
            if self._job is None:
                self._job = open_job(self.repo_config, registry=registry, online_store=self.online_store)
            return self._job

    def _materialize_ours(self, registry: BaseRegistry, tasks: Sequence[MaterializationTask]) -> None:
        start, end = min(task.start_time for task in tasks), max(task.end_time for task in tasks)
        if start > end:
            raise BadWindow(f"The window starts at {start.isoformat()}, after its end {end.isoformat()}. Swap the two.")
        job, report = self.job(registry), Report()
        view = liber_views(registry, project=self.repo_config.project)[BEHAVIORS]
        with report.timed("read"):
            checked = self.check(view, self._read(view, start, end))
        job.append(checked, report)
        job.seal_idle(min(end, datetime.now(UTC)), report)  # until then a live cache may still grow
        with self._working, _bars(tasks[0].tqdm_builder) as progress:
            job.drain(report, progress=progress)
        job.memory.keep_report(report.facts(), finished_time=job.clock())
        tqdm.write(report.line(), file=sys.stderr)

    def _read(self, view: FeatureView, start: datetime, end: datetime) -> pa.Table:
        """Return the log's rows within [start, end] and those without a time, which `check` refuses."""
        location = locate(view.batch_source, config=self.repo_config, view=view)
        source, schema = location.source, open_snapshot(location).dataset.schema
        pull = Pull(
            config=self.repo_config,
            source=source,
            keys=[view.join_keys[0]],
            features=[name for name in (ITEM, RATING, BEHAVIOR_ID) if name in schema.names],
            time=source.timestamp_field,
            created=None,
            start=start,
            end=end,
            with_null_times=True,
        )
        return pull.rows().rename_columns({view.join_keys[0]: USER, source.timestamp_field: EVENT_TIME})


def _done(task: MaterializationTask) -> MaterializationJob:
    job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
    return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)


@contextmanager
def _bars(builder: Callable[[int], Any] | None) -> Iterator[Progress]:
    """One of Feast's bars at a time: a stage opens its own and closes the one before."""
    bar: Any = None
    shown = ""

    def progress(stage: str, count: int, total: int | None) -> None:
        nonlocal bar, shown
        if builder is None:
            return
        if stage != shown:
            if bar is not None:
                bar.close()
            bar, shown = builder(total or 0), stage
            bar.set_description(stage)
        bar.update(count)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()
