"""What a push does by `on_the_fly`, and what it does when something beside the memory is away."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from feast import FeatureStore

from liber_feast.errors import MemoryAway
from liber_feast.memory.schema import partitions
from liber_feast.worker import Worker
from tests import feature_repo_kit as kit


@contextmanager
def opened(repo: Path) -> Iterator[FeatureStore]:
    store = kit.open_store(repo)
    yield store
    kit.close(store)


def sequence_counts(store: FeatureStore, users: list[str]) -> list[int]:
    found = kit.online(store, users, "behavior_sequence")["behavior_sequence__behavior_count"]
    return [count or 0 for count in found]


def assert_as_materialized(repo: Path, tmp_path: Path) -> None:
    whole, users = kit.materialized_repo(tmp_path / "whole"), kit.users_of(repo)
    for table in kit.PUBLISHED_TABLES:
        assert kit.published(repo, table) == kit.published(whole, table), table
    assert kit.online(kit.open_store(repo), users) == kit.online(kit.open_store(whole), users)


class Never:
    """A stop that does not come."""

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float) -> bool:
        time.sleep(min(timeout, 0.01))
        return False


def test_with_worker_a_push_shows_the_behaviors_and_leaves_texts_and_vectors_to_workers(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker")
    with opened(repo) as store:
        log, users = kit.log_of(repo), kit.users_of(repo)
        store.push("behavior_push", kit.frame(log))
        assert sequence_counts(store, users) == [19, 7, 23, 25, 3]
        assert kit.published(repo, "partition_summary") == []
        engine = store._get_provider().batch_engine  # type: ignore[attr-defined]  # Feast has no public way to it
        Worker(engine.job(store.registry), stop=Never()).run(once=True)
    assert_as_materialized(repo, tmp_path)


def test_in_background_a_push_returns_and_the_texts_follow(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="background")
    with opened(repo) as store:
        store.push("behavior_push", kit.frame(kit.log_of(repo)))
        engine = store._get_provider().batch_engine  # type: ignore[attr-defined]
        engine._drain.stop(patience_s=120)
    assert_as_materialized(repo, tmp_path)


def test_a_partition_knows_when_its_push_came(tmp_path: Path) -> None:
    repo, before = kit.repo_to_push_to(tmp_path / "repo"), time.time()
    with opened(repo) as store:
        store.push("behavior_push", kit.frame(kit.log_of(repo)))
        engine = store._get_provider().batch_engine  # type: ignore[attr-defined]
        with engine.job(store.registry).memory.reading() as connection:
            times = connection.execute(sa.select(partitions.c.pushed_time, partitions.c.online_time)).all()
    assert len(times) == kit.SEALED_COUNT
    assert all(before < pushed / 1e6 < online / 1e6 < time.time() for pushed, online in times)


def test_a_delta_table_that_cannot_be_written_fails_no_push(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo")
    table = repo / "data" / "partition_summary"
    shutil.rmtree(table, ignore_errors=True)
    table.write_text("in the way of the table", encoding="utf-8")
    with opened(repo) as store, caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
        log, users = kit.log_of(repo), kit.users_of(repo)
        store.push("behavior_push", kit.frame(log))
        assert sequence_counts(store, users) == [19, 7, 23, 25, 3]
        (record,) = caplog.records
        assert "; features are left to the next materialization: " in record.message
        assert "\n" not in record.message
        table.unlink()
        store.materialize(kit.START, kit.END)
    assert_as_materialized(repo, tmp_path)


def test_a_push_whose_memory_is_away_says_so(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", memory="postgresql+psycopg://nobody@127.0.0.1:1/none")
    with opened(repo) as store, pytest.raises(MemoryAway) as away:
        store.push("behavior_push", kit.frame(kit.log_of(repo).slice(0, 4)))
    assert "\n" not in away.value.message
