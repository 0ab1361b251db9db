"""A process that holds a store open follows `feast apply` and a memory that is replaced, and says what it does not."""

import os
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from feast import FeatureStore

from liber_feast.engine import LiberComputeEngine
from liber_feast.errors import StoreNotReady
from liber_feast.memory.store import MemoryReplaced
from liber_feast.origin import LOOK_S
from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return kit.materialized_repo(tmp_path / "repo")


@pytest.fixture
def store(repo: Path) -> Iterator[FeatureStore]:
    store = kit.open_store(repo)
    push(store, 0)
    yield store
    kit.close(store)


def engine_of(store: FeatureStore) -> LiberComputeEngine:
    engine: LiberComputeEngine = store._get_provider().engine  # type: ignore[attr-defined]  # ours
    return engine


def push(store: FeatureStore, number: int) -> None:
    """Push what seals another partition of a user."""
    start = kit.END - timedelta(days=9 - number)
    rows = [kit.behavior("u0001", f"i000{row + 1}", at=start + timedelta(seconds=row)) for row in range(kit.SIZE)]
    store.push("behavior_push", pd.concat(rows))


def rewrite(path: Path, *, before: str, after: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert before in content
    path.write_text(content.replace(before, after), encoding="utf-8")


def let_it_be_seen() -> None:
    time.sleep(LOOK_S + 0.1)


def test_what_feast_apply_changes_in_another_process_holds_for_the_next_push(repo: Path, store: FeatureStore) -> None:
    rewrite(repo / "sources.py", before='delta("partition_summary"', after='delta("summary_table"')
    kit.close(kit.apply(repo))
    let_it_be_seen()
    push(store, 1)
    before, after = (kit.published(repo, table) for table in ("partition_summary", "summary_table"))
    assert {row["user_id"] for row in after} == {"u0001"}  # the others' when everybody's is published
    assert len(after) == 1 + len([row for row in before if row["user_id"] == "u0001"])
    store.materialize(kit.START, kit.END)
    assert len(kit.published(repo, "summary_table")) == repo_status(repo)["sealed_partitions"] == len(before) + 1


def test_a_view_that_is_no_more_refuses_the_push_and_the_push_is_taken_when_it_is_back(
    repo: Path, store: FeatureStore
) -> None:
    definitions = (repo / "views.py").read_text(encoding="utf-8")
    rewrite(repo / "views.py", before='name="partition_shift"', after='name="another_shift"')
    kit.close(kit.apply(repo))
    let_it_be_seen()
    before = kit.memory_rows(repo)
    with pytest.raises(StoreNotReady, match="'partition_shift' is not in the registry.*feast apply"):
        push(store, 1)
    assert kit.memory_rows(repo) == before
    (repo / "views.py").write_text(definitions, encoding="utf-8")
    kit.close(kit.apply(repo))
    let_it_be_seen()
    push(store, 1)
    assert repo_status(repo)["waiting_users"] == 0


def test_a_materialization_writes_the_registry_and_opens_nothing_anew(repo: Path, store: FeatureStore) -> None:
    job = engine_of(store).job(store.registry)
    other = kit.open_store(repo)
    other.materialize(kit.START, kit.END)
    kit.close(other)
    let_it_be_seen()
    push(store, 1)
    assert engine_of(store).job(store.registry) is job


def test_a_configuration_that_changed_is_said_once_and_not_followed(
    repo: Path, store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    job, path = engine_of(store).job(store.registry), repo / "feature_store.yaml"
    block = yaml.safe_load(path.read_text(encoding="utf-8"))
    block["batch_engine"]["partition"]["size"] = 1
    path.write_text(yaml.safe_dump(block), encoding="utf-8")
    let_it_be_seen()
    push(store, 1)
    push(store, 2)
    said = [one.message for one in caplog.records if "feature_store.yaml" in one.message]
    assert said == [
        "feature_store.yaml was changed; this process goes on with what it has read at its start, until it is started"
        " again."
    ]
    assert engine_of(store).job(store.registry) is job


def test_a_prompt_that_changed_writes_the_next_texts(tmp_path: Path) -> None:
    template = Path(kit.FEATURE_REPO).parent / "liber_feast" / "prompts" / "movielens.toml"
    repo = kit.repo_to_push_to(tmp_path / "repo", interest={"backend": "extractive", "prompt": "own.toml"})
    shutil.copy(template, repo / "own.toml")
    store = kit.open_store(repo)
    push(store, 0)
    rewrite(repo / "own.toml", before="film", after="movie")
    let_it_be_seen()
    push(store, 1)
    kit.close(store)
    assert sorted(repo_status(repo)["prompt_versions"].values()) == [1, 2]


@pytest.mark.parametrize("on_the_fly", ["inline", "background"])
def test_a_memory_that_was_replaced_is_opened_anew_by_the_next_push(tmp_path: Path, on_the_fly: str) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly=on_the_fly)
    store = kit.open_store(repo)
    push(store, 0)
    job = engine_of(store).job(store.registry)
    os.rename(repo / "data", repo / "data-before")
    shutil.copytree(repo / "data-before", repo / "data")
    for name in ("memory.db", "memory.db-wal", "memory.db-shm"):
        (repo / "data" / name).unlink(missing_ok=True)
    with pytest.raises(MemoryReplaced):
        job.memory.setting("memory_id")
    push(store, 1)
    deadline = time.monotonic() + 60
    while repo_status(repo)["waiting_users"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    facts = repo_status(repo)
    assert (facts["behaviors"], facts["summaries"]) == (kit.SIZE, 1)
    assert kit.online(store, ["u0001"], "behavior_sequence")["behavior_sequence__behavior_count"] == [kit.SIZE]
    kit.close(store)
