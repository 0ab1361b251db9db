"""Applied feature repos with a small data set, for tests of the whole plugin.

Making one takes seconds, copying one takes none: each is made once per process and tests get copies.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
import yaml
from click.testing import CliRunner, Result
from deltalake import DeltaTable
from feast import FeatureStore
from feast.cli.cli import cli as feast_program
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total_with_repo_instance, parse_repo

from liber_feast import job
from liber_feast.behavior import BEHAVIOR_ID, EVENT_TIME, ITEM, RATING, TIMESTAMP, USER, behavior_ids
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.datasets import DataSet, read_data_set
from liber_feast.datasets.writer import write_data_set
from liber_feast.errors import LiberError
from liber_feast.interest import Answers, InterestLearner, ShiftRequest, SummaryRequest
from liber_feast.llm.extractive import ExtractiveLearner
from liber_feast.memory.schema import metadata
from liber_feast.prompt import load_prompt
from tests.folders import lasting_folder

FEATURE_REPO = Path(__file__).resolve().parents[1] / "feature_repo"
START, END = datetime(2022, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)

SIZE, WIDTH, WINDOW, LENGTH = 4, 3, 3, 6
"""Partition size, encoder width, memory window and sequence length of the small repos: all are exceeded."""

LEASE_S = 3.0
"""What a process that was killed had claimed is free after it."""

SEALED_COUNT, SHIFT_COUNT = 16, 12
"""What the small data set comes to."""

LIBER_VIEWS = (
    "behavior_sequence",
    "partition_summary",
    "partition_shift",
    "long_term_memory",
    "fused_vector",
    "partition_evidence",
)
ITEM_VIEW = "item_text"
"""The views that are published: of users, and the one of items."""
PUBLISHED_TABLES = ("partition_summary", "partition_shift", "partition_vector", "fused_vector", "partition_evidence")


class WatchedLearner:
    """The extractive learner, counting its calls: it takes `seconds` for each and fails after `limit` of them."""

    counts_behaviors = True

    def __init__(self, *, limit: int | None = None, seconds: float = 0.0) -> None:
        self._inner = ExtractiveLearner(load_prompt("movielens"))
        self.limit, self.seconds, self.call_count = limit, seconds, 0

    @property
    def model(self) -> str:
        return self._inner.model

    @property
    def prompt_version(self) -> str:
        return self._inner.prompt_version

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        for request in requests:
            self._call()
            yield from self._inner.summarize([request])

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        for request in requests:
            self._call()
            yield from self._inner.learn_shifts([request])

    def _call(self) -> None:
        if self.call_count == self.limit:
            raise LiberError("The backend does not answer.")
        self.call_count += 1
        time.sleep(self.seconds)


def use(learner: InterestLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stores that are opened from now on have this learner."""

    def open_learner(_config: LiberComputeEngineConfig, *, base: Path) -> InterestLearner:
        return learner

    monkeypatch.setattr(job, "open_learner", open_learner)


def small_data_set() -> DataSet:
    """Return 5 users whose behaviors share times, some more of them than a partition holds; one has no partition.

    Its items are theirs, and the first nine.
    """
    data_set = read_data_set("synthetic", seed=7, users=5, behaviors=80)
    times = pc.floor_temporal(data_set.behaviors[EVENT_TIME], multiple=12, unit="hour")
    place = data_set.behaviors.column_names.index(EVENT_TIME)
    tied = data_set.behaviors.set_column(place, EVENT_TIME, times.cast(TIMESTAMP))
    of_last = np.flatnonzero(tied[USER].to_numpy() == "u0005")
    kept = tied.take(np.delete(np.arange(len(tied)), of_last[SIZE - 1 :]))
    named = pa.concat_arrays([kept[ITEM].combine_chunks().unique(), data_set.items[ITEM].combine_chunks().slice(0, 9)])
    items = data_set.items.filter(pc.is_in(data_set.items[ITEM], named))
    counts = {**data_set.counts, "behaviors": len(kept), "items": len(items)}
    return replace(data_set, behaviors=kept, items=items, counts=counts)


def copy_feature_repo(target: Path, **engine: Any) -> Path:
    """Copy the feature repo without data; `engine` are keys of the engine block to replace."""
    shutil.copytree(FEATURE_REPO, target, ignore=shutil.ignore_patterns("data*", "__pycache__"))
    small = {
        "partition": {"condition": "count", "size": SIZE},
        "encoder": {"model": "bundled", "width": WIDTH},
        "evidence": {"width": WIDTH},
        "sequence": {"length": LENGTH},
        "memory_window": WINDOW,
        "worker": {"lease_s": LEASE_S},
    }
    return set_engine(target, **{**small, **engine})


def apply(repo: Path) -> FeatureStore:
    """Do what `feast apply` does, in this process."""
    config = load_repo_config(repo, repo / "feature_store.yaml")
    store = FeatureStore(repo_path=str(repo), config=config)
    with definitions(repo):
        contents = parse_repo(repo)
        apply_total_with_repo_instance(store, store.project, store.registry, contents, skip_source_validation=False)
    return store


def feast(repo: Path, *arguments: str) -> Result:
    """Run the code of the program `feast` in this process, which takes none of the seconds that its imports take."""
    with definitions(repo):
        return CliRunner().invoke(feast_program, ["--chdir", str(repo), *arguments])


def loaded_repo(target: Path) -> Path:
    """Return an applied repo with the small data set, not materialized."""
    return Path(shutil.copytree(_loaded(), target))


def materialized_repo(target: Path) -> Path:
    """Return an applied repo with the small data set, materialized from START to END."""
    return Path(shutil.copytree(_materialized(), target))


def repo_to_push_to(target: Path, **engine: Any) -> Path:
    """Return an applied repo without behaviors in its memory, but with the PCAs of `materialized_repo`.

    `engine` are keys of the engine block to replace.
    """
    repo = loaded_repo(target)
    set_engine(repo, **engine)
    for folder in ("encoder", "item_encoder"):
        shutil.copytree(_materialized() / "data" / folder, repo / "data" / folder)
    return repo


def open_store(repo: Path) -> FeatureStore:
    return FeatureStore(repo_path=str(repo))


def log_of(repo: Path) -> pa.Table:
    """Return the behavior log in its order (event time, behavior id)."""
    rows = DeltaTable(str(repo / "data" / "behaviors")).to_pyarrow_table().combine_chunks()
    ids = behavior_ids(*(rows[name].combine_chunks() for name in (USER, ITEM, EVENT_TIME)))
    keys = [(EVENT_TIME, "ascending"), (BEHAVIOR_ID, "ascending")]
    return rows.append_column(BEHAVIOR_ID, ids).sort_by(keys).drop_columns([BEHAVIOR_ID])


def frame(rows: pa.Table) -> pd.DataFrame:
    """Return rows of the log as a user pushes them."""
    pushed: pd.DataFrame = rows.to_pandas()
    return pushed


def behavior(user: str, item: str, *, at: datetime, rating: float = 4.0) -> pd.DataFrame:
    """Return one behavior as a user pushes it."""
    return pd.DataFrame({USER: [user], ITEM: [item], RATING: [rating], EVENT_TIME: [pd.Timestamp(at)]})


def users_of(repo: Path) -> list[str]:
    return sorted(set(log_of(repo)[USER].to_pylist()))


def published(
    repo: Path, table: str, *, without: Sequence[str] = ("created_timestamp",), key: str = USER
) -> list[dict[str, Any]]:
    """Return the rows of a published Delta table in a fixed order."""
    path = repo / "data" / table
    if not DeltaTable.is_deltatable(str(path)):
        return []
    rows = DeltaTable(str(path)).to_pyarrow_table().drop_columns(list(without))
    keys = [(name, "ascending") for name in (key, EVENT_TIME)]
    found: list[dict[str, Any]] = rows.sort_by(keys).to_pylist()
    return found


def delta_versions(repo: Path) -> dict[str, int]:
    """Return the version of every Delta table of the repo: each commit counts one."""
    tables = sorted(path.parent for path in (repo / "data").glob("*/_delta_log"))
    return {path.name: DeltaTable(str(path)).version() for path in tables}


def features_of(store: FeatureStore, *views: str) -> list[str]:
    """Return the references of all features of the views."""
    return [f"{view}:{field.name}" for view in views for field in store.get_feature_view(view).features]


def online(store: FeatureStore, users: Sequence[str], *views: str) -> dict[str, list[Any]]:
    """Return the online features of the views for every user, by `view__feature`."""
    rows = [{"user_id": user} for user in users]
    features = features_of(store, *(views or LIBER_VIEWS))
    found: dict[str, list[Any]] = store.get_online_features(features, rows, full_feature_names=True).to_dict()
    return found


def online_items(store: FeatureStore, items: Sequence[str]) -> dict[str, list[Any]]:
    """Return the online features of `item_text` for every item."""
    rows = [{"item_id": item} for item in items]
    found: dict[str, list[Any]] = store.get_online_features(features_of(store, ITEM_VIEW), rows).to_dict()
    return found


def memory_rows(repo: Path) -> Mapping[str, list[tuple[Any, ...]]]:
    """Return every row of the memory but the reports of runs."""
    engine = sa.create_engine(f"sqlite:///{repo / 'data' / 'memory.db'}")
    tables = [table for table in metadata.sorted_tables if table.name != "runs"]
    with engine.connect() as connection:
        found = {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in tables
        }
    engine.dispose()
    return found


def close(store: FeatureStore) -> None:
    """Give back the connections of a store."""
    provider = store._get_provider()
    engine = provider.batch_engine  # type: ignore[attr-defined]  # Feast has no public way to it
    if engine._job is not None:
        engine._job.memory.close()
        engine._job.online.close()
    online_store = provider.online_store  # type: ignore[attr-defined]
    connection = getattr(online_store, "_conn", None)  # Feast never closes it
    if connection is not None:
        connection.close()
        online_store._conn = None


@cache
def _loaded() -> Path:
    repo = copy_feature_repo(lasting_folder() / "repo")
    write_data_set(small_data_set(), repo)
    apply(repo)
    return repo


@cache
def _materialized() -> Path:
    repo = loaded_repo(lasting_folder() / "repo")
    store = open_store(repo)
    store.materialize(START, END)
    close(store)
    return repo


def set_keys(repo: Path, **keys: Any) -> Path:
    """Set keys of feature_store.yaml."""
    path = repo / "feature_store.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(config | keys, sort_keys=False), encoding="utf-8")
    return repo


def set_engine(repo: Path, **keys: Any) -> Path:
    """Set keys of the engine block."""
    block = yaml.safe_load((repo / "feature_store.yaml").read_text(encoding="utf-8"))
    return set_keys(repo, batch_engine=block["batch_engine"] | keys)


@contextmanager
def definitions(repo: Path) -> Iterator[None]:
    """Let the modules of a feature repo be imported anew, and forgotten afterwards."""
    names = [path.stem for path in repo.glob("*.py")]
    sys.path.insert(0, str(repo))
    try:
        with _working_folder(repo):
            yield
    finally:
        sys.path.remove(str(repo))
        for name in names:
            sys.modules.pop(name, None)


@contextmanager
def _working_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
