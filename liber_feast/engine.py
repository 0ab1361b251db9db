"""The compute engine: `feast materialize` and pushes drive the job; views that are not LIBER's go to Feast's engine."""

import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from threading import RLock
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError
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

from liber_feast import stream_metrics
from liber_feast.background import BackgroundDrain
from liber_feast.behavior import (
    BEHAVIOR_ID,
    EVENT_TIME,
    ITEM,
    RATING,
    USER,
    CheckedBehaviors,
    canonical_times,
    check_behaviors,
)
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.errors import (
    BackendRefused,
    BackendUnreachable,
    BadWindow,
    InvalidBehaviors,
    LiberError,
    MemoryAway,
    MemoryFailure,
    StoreFailure,
    StoreNotReady,
    one_line,
)
from liber_feast.job import forget_online, liber_views, open_job, open_registry, repo_folder
from liber_feast.materialize import Job, Report, utc_microseconds
from liber_feast.memory.backfill import append_in_groups
from liber_feast.memory.tombstones import Flags, is_forgotten
from liber_feast.offline_pull import Pull
from liber_feast.offline_read import STAGE, locate, open_snapshot
from liber_feast.origin import CONFIGURATION
from liber_feast.partition import DriftCondition
from liber_feast.run_display import bars, exposed_metrics
from liber_feast.sequences import BEHAVIORS, SequenceRows, publish_sequences
from liber_feast.shortfall import shortfall

__all__ = ["LiberComputeEngine", "LiberComputeEngineConfig"]

logger = logging.getLogger(__name__)

PUSH_PATIENCE_S = 10.0
"""How long a push waits for an LLM that does not answer, beside calls under way; other pushes wait for it meanwhile."""

LEFT_TO = {"inline": "the next materialization", "background": "the thread", "worker": "the workers"}
"""Who does what a push could not, by `on_the_fly`."""

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
        self._drain: BackgroundDrain | None = None
        self._is_change_said = False
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

        Where texts failed, the budget is out or the LLM is gone, everything else is published and Feast raises the
        error of our jobs: then no LIBER view counts as materialized over the window.

        Raises:
            BadWindow: the window ends before it starts.
            LiberError: see `Job`; then no view of `tasks` counts as materialized.
        """
        asked = [tasks] if isinstance(tasks, MaterializationTask) else tasks
        ours = [task for task in asked if STAGE in task.feature_view.tags]
        error = self._materialize_ours(registry, ours) if ours else None
        return [
            _ended(task, error)
            if STAGE in task.feature_view.tags
            else self._local.materialize(registry, task, **options)[0]
            for task in asked
        ]

    def push(
        self,
        registry: BaseRegistry,
        table: pa.Table,
        *,
        view: FeatureView | None = None,
        pushed_time: int | None = None,
    ) -> Report:
        """Append pushed behaviors, show them online and, by `on_the_fly`, make what follows from them.

        `view` is the view `behaviors`, where the caller has it; `pushed_time` is when the push came, in microseconds.

        Once the behaviors are kept, a push fails no more: what cannot be had or written now (the LLM or the encoder,
        the online store, a Delta table) is logged and left to the next run, worker or push of the user.

        Raises:
            InvalidBehaviors: a row breaks the schema; nothing was taken.
            RetryableError: the memory is locked or away. Push the same rows again: what was taken before counts once.
            MemoryFailure: the memory cannot be written.
        """
        pushed_time = utc_microseconds() if pushed_time is None else pushed_time
        job, report = self.job(registry), Report()
        view = view or liber_views(registry, project=self.repo_config.project)[BEHAVIORS]
        appended = job.append(self.check(view, table), report, pushed_time=pushed_time)
        stopped = self._follow(job, report, appended.user_keys)
        if stopped:
            what = "texts" if isinstance(stopped, (BackendRefused, BackendUnreachable)) else "features"
            whom = LEFT_TO[self.config.on_the_fly]
            logger.warning("push: %s; %s are left to %s: %s", report.line(), what, whom, stopped.message)
        elif report.failed_count or report.exhausted or (report.missing_text_count and report.sealed_count):
            logger.warning("push: %s", report.line())
        elif report.duplicate_count or report.late_count:
            logger.info("push: %s", report.line())
        return report

    def window(self, registry: BaseRegistry, *, start: datetime, end: datetime) -> CheckedBehaviors:
        """Return the behaviors that the log has within [start, end].

        Raises:
            BadWindow: the window ends before it starts.
            InvalidBehaviors: a row breaks the schema.
        """
        _check_window(start, end)
        view = liber_views(registry, project=self.repo_config.project)[BEHAVIORS]
        pull, names = self._pull(view, start, end)
        return self.check(view, pull.rows().rename_columns(names))

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

    def is_forgotten(self, registry: BaseRegistry, table: pa.Table) -> Flags:
        """Return which rows of a valid behavior table are of forgotten users, up to when they were forgotten."""
        times = canonical_times(table[EVENT_TIME]).cast(pa.int64()).to_numpy()
        with self.job(registry).memory.reading() as connection:
            return is_forgotten(connection, table[USER], times=times)

    def job(self, registry: BaseRegistry) -> Job:
        """Return the job of this feature repo, opened once and anew where its views, prompt or memory changed.

        A change of feature_store.yaml is said, and not followed: Feast itself has read it when the process started.
        """
        with self._working:
            before = self._job
            if before is not None and not self._is_outdated(before):
                return before
            opened = self._job = open_job(self.repo_config, registry=registry, online_store=self.online_store)
            if before is not None:
                self._retire(before)
            return opened

    def _is_outdated(self, job: Job) -> bool:
        changes = set(job.origin.changes())
        if CONFIGURATION in changes and not self._is_change_said:
            self._is_change_said = True
            logger.warning(
                "%s was changed; this process goes on with what it has read at its start, until it is started again.",
                CONFIGURATION,
            )
        return bool(changes - {CONFIGURATION}) or job.memory.is_replaced()

    def _retire(self, job: Job) -> None:
        """Let nothing begin with a job any more; what others have begun with it ends."""
        if self._drain is None:
            job.close()
        else:
            self._drain.retire()
            self._drain = None

    def finish(
        self,
        job: Job,
        report: Report,
        *,
        user_keys: Sequence[int] | None = None,
        tqdm_builder: Callable[[int], Any] | None = None,
    ) -> LiberError | None:
        """Make and publish all that is missing, failed texts included, and say what was done.

        Return what could not be done, to be raised once everything else of the run is.

        Raises:
            ConfigError: the metrics' file cannot be written; nothing was made.
            LiberError: another part cannot be used, or a store not be written; see `Job`.
        """
        stopped: LiberError | None = None
        shown = exposed_metrics(port=job.exposed.port, textfile=job.exposed.textfile, count_pending=job.count_pending)
        with self._working, shown:
            try:
                spent = job.llm.learner.spent if job.llm else None
                with bars(tqdm_builder, spent=spent) as progress:
                    job.drain(report, user_keys=user_keys, with_failed=True, progress=progress)
            except (BackendRefused, BackendUnreachable) as error:
                stopped = error
            finally:
                job.close_llm()
        if stopped and not report.has_work:
            return stopped
        job.memory.keep_report(report.facts(), finished_time=job.clock())
        tqdm.write(report.line(), file=sys.stderr)
        return stopped or shortfall(job, report)

    def _materialize_ours(self, registry: BaseRegistry, tasks: Sequence[MaterializationTask]) -> LiberError | None:
        start, end = min(task.start_time for task in tasks), max(task.end_time for task in tasks)
        _check_window(start, end)
        job, report = self.job(registry), Report()
        self._append_window(job, report, registry, start=start, end=end)
        job.seal_idle(min(end, datetime.now(UTC)), report)  # until then a live cache may still grow
        return self.finish(job, report, tqdm_builder=tasks[0].tqdm_builder)

    def _follow(self, job: Job, report: Report, user_keys: Sequence[int]) -> LiberError | None:
        """Publish what follows from behaviors that are kept; return why it is not all done."""
        stopped = _stopped(lambda: self._show(job, report, user_keys))
        if stopped:  # as nothing may ever be sealed of them, nobody would look for them
            job.leave(user_keys)
        if self.config.on_the_fly == "background":
            self._background(job).kick()
        elif self.config.on_the_fly == "inline" and not stopped:
            with self._working:
                stopped = _stopped(lambda: job.drain(report, user_keys=user_keys, patience_s=PUSH_PATIENCE_S))
        return stopped

    def _show(self, job: Job, report: Report, user_keys: Sequence[int]) -> None:
        """Show the recent behaviors of users online."""
        with report.timed("publish"):
            recent = partial(SequenceRows, length=job.sequence_length)
            publish_sequences(job.memory, projection=recent, online=job.online, user_keys=user_keys)

    def _background(self, job: Job) -> BackgroundDrain:
        with self._working:
            self._drain = self._drain or BackgroundDrain(job)
            return self._drain

    def _append_window(
        self, job: Job, report: Report, registry: BaseRegistry, *, start: datetime, end: datetime
    ) -> None:
        """Append what the log has within [start, end], in transactions and in main memory of bounded size."""
        view = liber_views(registry, project=self.repo_config.project)[BEHAVIORS]
        pull, names = self._pull(view, start, end)
        folder = repo_folder(self.repo_config) / "data"
        folder.mkdir(exist_ok=True)
        with report.timed("append"):
            appended = append_in_groups(
                job.memory,
                (table.rename_columns(names) for table in pull.batches()),
                condition=job.condition,
                folder=folder,
                check=partial(self.check, view),
                item_vectors=job.title_vectors if isinstance(job.condition, DriftCondition) else None,
            )
        report.count_append(appended)
        stream_metrics.record_append(appended)

    def _pull(self, view: FeatureView, start: datetime, end: datetime) -> tuple[Pull, dict[str, str]]:
        """Return what reads the log's rows within [start, end] and those without a time, which `check` refuses.

        Its columns have the source's own names; the second part gives those of the behavior schema.
        """
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
        return pull, {view.join_keys[0]: USER, source.timestamp_field: EVENT_TIME}


def _stopped(work: Callable[[], object]) -> LiberError | None:
    """Do something for which no push fails; return why it is not all done.

    Raises:
        MemoryAway, MemoryFailure: the memory cannot be written, and for that a push does fail.
    """
    try:
        work()
    except (MemoryAway, MemoryFailure):
        raise
    except LiberError as error:
        return error
    except (OSError, DeltaError) as error:
        return StoreFailure(f"A feature table cannot be written: {one_line(error)[:200]}.")
    return None


def _check_window(start: datetime, end: datetime) -> None:
    if start > end:
        raise BadWindow(f"The window starts at {start.isoformat()}, after its end {end.isoformat()}. Swap the two.")


def _ended(task: MaterializationTask, error: LiberError | None) -> MaterializationJob:
    job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
    status = MaterializationJobStatus.SUCCEEDED if error is None else MaterializationJobStatus.ERROR
    return LocalMaterializationJob(job_id=job_id, status=status, error=error)
