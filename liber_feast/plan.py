"""What a materialization would do and cost: no call, and nothing written where it could be found again."""

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dateutil import parser  # type: ignore[import-untyped]
from feast import FeatureStore
from feast.utils import make_tzaware

from liber_feast.behavior import CheckedBehaviors
from liber_feast.condition import DriftCondition
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.errors import ConfigError, MemoryFailure, one_line
from liber_feast.estimate import Estimate, missing_text_counts
from liber_feast.interest_config import ExtractiveConfig
from liber_feast.job import interest_versions, open_catalog, open_encoding, repo_folder
from liber_feast.llm.extractive import ExtractiveLearner
from liber_feast.llm_backend import open_estimator, open_ledger, open_prompt
from liber_feast.materialize import utc_microseconds
from liber_feast.memory import Memory
from liber_feast.memory.ledger import Remaining
from liber_feast.repo import open_engine
from liber_feast.title_vectors import TitleVectors
from liber_feast.waves import MemoryWaves


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a materialization would do, and cost."""

    behavior_count: int
    """New ones in the window."""
    sealed_count: int
    """Partitions that they fill."""
    missing: Mapping[str, int]
    """Texts to be written, by stage."""
    versions: Mapping[str, str]
    """The prompt version and the model that they would be written with."""
    estimate: Estimate
    """Empty where the backend makes no calls."""
    budget_left: Sequence[Remaining]
    """Every limit there is, and what is left of it."""

    def facts(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "new_behaviors": self.behavior_count,
            "new_partitions": self.sealed_count,
            "missing_texts": dict(self.missing),
            **self.versions,
            **self.estimate.facts(),
            "budget_left": [asdict(one) for one in self.budget_left],
        }


def plan_window(repo: Path, start: str, end: str) -> Plan:
    """Return what `feast materialize START END` would ask an LLM for.

    The window's behaviors are appended to a copy of the memory, which is thrown away.

    Raises:
        ConfigError: a time that cannot be read, a key that cannot be used, or a memory that is no SQLite file.
        BadWindow: the window ends before it starts.
        StoreNotReady: the repo was never applied or loaded.
        InvalidBehaviors: a row breaks the schema.
    """
    store, engine = open_engine(repo)
    first, last = read_time(start, name="START"), read_time(end, name="END")
    checked = engine.window(store.registry, start=first, end=last)
    with tempfile.TemporaryDirectory() as folder, _copied_memory(store, Path(folder)) as memory:
        return _plan(store, memory, block=store.config.batch_engine, checked=checked, end=last)


def read_time(text: str, *, name: str) -> datetime:
    """Return a time as `feast materialize` reads it: UTC, where it names no zone.

    Raises:
        ConfigError: it is none.
    """
    try:
        return make_tzaware(parser.parse(text))
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{name}: {one_line(error)}. Write it as ISO 8601, for example 2024-01-31T00:00:00."
        ) from error


def _plan(
    store: FeatureStore, memory: Memory, *, block: LiberComputeEngineConfig, checked: CheckedBehaviors, end: datetime
) -> Plan:
    condition, catalog = block.condition(), open_catalog(store.config, registry=store.registry)
    prompt = open_prompt(block.interest.prompt, base=repo_folder(store.config), form=block.interest.form)
    titles = TitleVectors(encoding=open_encoding(store.config), catalog=catalog)
    is_drift = isinstance(condition, DriftCondition)
    appended = memory.append(checked.table, condition=condition, item_vectors=titles if is_drift else None)
    idle_count = memory.seal_idle(min(end, datetime.now(UTC)), condition=condition)
    waves = MemoryWaves(
        memory=memory,
        catalog=catalog,
        learner=ExtractiveLearner(prompt),  # it is not asked: requests alone are read
        like_above=block.behavior.like_above,
        clock=utc_microseconds,
        with_failed=True,
    )
    estimate, left = Estimate(stages=()), list[Remaining]()
    with memory.reading() as connection:
        missing = missing_text_counts(connection)
        if not isinstance(block.interest, ExtractiveConfig):
            ledger = open_ledger(block.interest, memory, prompt=prompt, clock=utc_microseconds)
            estimator, left = open_estimator(block.interest, prompt=prompt), ledger.remaining(connection)
            estimate = estimator.estimate(connection, missing=missing, summaries=waves.summary_requests())
    return Plan(
        behavior_count=appended.behavior_count,
        sealed_count=appended.sealed_count + idle_count,
        missing=missing,
        versions=interest_versions(block, base=repo_folder(store.config)),
        estimate=estimate,
        budget_left=left,
    )


@contextmanager
def _copied_memory(store: FeatureStore, folder: Path) -> Iterator[Memory]:
    """Open a copy of the repo's memory in `folder`, or an empty one where it has none yet."""
    url, base = sa.make_url(store.config.batch_engine.memory), repo_folder(store.config)
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise ConfigError("`liber plan` works on a copy of the memory, and can copy a SQLite file alone.")
    if (base / url.database).exists():
        _copy((base / url.database).resolve(), folder / "memory.db")
    memory = Memory.open("sqlite:///memory.db", base=folder)
    try:
        yield memory
    finally:
        memory.close()


def _copy(source: Path, target: Path) -> None:
    """Copy a database as it is now, while others may write to it."""
    try:
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True)) as opened,
            closing(sqlite3.connect(target)) as copy,
        ):
            opened.backup(copy)
    except sqlite3.Error as error:
        raise MemoryFailure(f"The memory {source} cannot be copied: {one_line(error)}.") from error
