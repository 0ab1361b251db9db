"""What `liber costs`, `retry` and `recompute` do on a feature repo."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from tqdm import tqdm

from liber_feast.behavior import microseconds
from liber_feast.engine import LiberComputeEngine
from liber_feast.errors import ConfigError, LiberError
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.job import open_memory
from liber_feast.materialize import Job, Report
from liber_feast.memory.missing import mark_recomputations, recomputation_count
from liber_feast.memory.schema import recomputations, users
from liber_feast.memory.spending import SpentBy, spent
from liber_feast.memory.status import failed_user_keys
from liber_feast.plan import read_time
from liber_feast.repo import open_applied_store, open_engine

STAGES = (SUMMARY, SHIFT)
SUMMED = (
    *("calls", "answered", "rejected", "refused", "lost", "open"),
    *("input_tokens", "cached_tokens", "output_tokens", "dollars", "seconds"),
)
REPORTED = (
    *("summary_count", "shift_count", "failed_count", "call_count", "input_tokens", "output_tokens", "dollars"),
    "exhausted",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a command did, and the error that it ends with once that is shown."""

    facts: dict[str, Any]
    error: LiberError | None = None


def costs(repo: Path, *, by: SpentBy) -> dict[str, Any]:
    """Return what the calls have cost, by day (UTC), model, stage or user, and in all.

    Raises:
        StoreNotReady: the repo was never applied, or has no memory yet.
    """
    memory = open_memory(open_applied_store(repo).config, create=False)
    with memory.reading() as connection:
        rows = [asdict(row) for row in spent(connection, by=by)]
    memory.close()
    return {"by": by, "rows": rows, "total": {name: sum(row[name] for row in rows) for name in SUMMED}}


def retry(repo: Path, *, user_id: str | None) -> Done:
    """Try failed texts once more, of all users or of one, and publish what follows; nothing is done where none failed.

    Raises:
        StoreNotReady: the repo was never applied, or has no memory yet.
        ConfigError: there is no such user.
    """
    store, engine = open_engine(repo)
    memory = open_memory(store.config, create=False)
    with memory.reading() as connection:
        keys = failed_user_keys(connection, user_id=user_id)
        is_known = user_id is None or connection.scalar(sa.select(users.c.user_key).where(users.c.user_id == user_id))
    memory.close()
    if not is_known:
        raise ConfigError(f"The memory has no user {user_id!r}. Write the id as the source has it.")
    if not keys:
        return Done(facts={"retried_users": 0})
    return _finish(engine, engine.job(store.registry), user_keys=keys, facts={"retried_users": len(keys)})


def recompute(repo: Path, *, since: str, stage: str | None) -> Done:
    """Write the texts of the partitions that were sealed at or after `since` anew, of both stages or of one.

    What is to be done is written down first: an interrupted run is gone on with by this, or by `feast materialize`.
    As long as texts that were marked before wait (`texts_marked_before`), none that was written since then by the
    prompt and model in use is written once more.

    Raises:
        StoreNotReady: the repo was never applied, or has no memory yet.
        ConfigError: a time that cannot be read or lies in the future.
    """
    time = read_time(since, name="--since")
    if time > datetime.now(UTC):
        raise ConfigError(f"--since: {time.isoformat()} lies in the future; no partition was sealed after it.")
    store, engine = open_engine(repo)
    open_memory(store.config, create=False).close()
    job = engine.job(store.registry)  # says before anything is written down where the backend cannot be used
    stages = STAGES if stage is None else (stage,)
    with job.memory.writing() as connection:
        before = recomputation_count(connection)
        count = mark_recomputations(
            connection,
            since=microseconds(time),
            stages=stages,
            asked_time=job.clock(),
            prompt_version=job.learner.prompt_version,
            model=job.learner.model,
        )
        keys = connection.scalars(sa.select(recomputations.c.user_key).distinct().order_by("user_key")).all()
    if not keys:
        job.memory.close()
        return Done(facts={"marked_texts": 0})
    return _finish(engine, job, user_keys=keys, facts={"marked_texts": count, "texts_marked_before": before})


def _finish(engine: LiberComputeEngine, job: Job, *, user_keys: Sequence[int], facts: dict[str, Any]) -> Done:
    report = Report()
    try:
        error = engine.finish(job, report, user_keys=user_keys, tqdm_builder=lambda total: tqdm(total=total, ncols=100))
        with job.memory.reading() as connection:
            left = recomputation_count(connection)
    finally:
        job.memory.close()
    made = {name: value for name, value in report.facts().items() if name in REPORTED}
    return Done(facts={**facts, **made, "texts_to_write_anew": left}, error=error)
