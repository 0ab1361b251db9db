"""The whole plugin with Redis as the online store, shared with others' keys; and with one that is away."""

import logging
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from feast.data_source import PushMode

from liber_feast.materialize import Report
from liber_feast.repo import open_repo_job, repo_status
from tests import feature_repo_kit as kit
from tests.online_parts import forget_redis, redis_block

EVERY_VIEW = ("behaviors", *kit.LIBER_VIEWS)
LEFT = {"worker": "features are left to the workers: ", "background": "features are left to the thread: "}


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Path]:
    """An applied repo with data, whose project and so whose keys in Redis are its own."""
    project = f"liber_{uuid.uuid4().hex[:12]}"
    with redis_block(tmp_path) as block:
        repo = kit.set_keys(kit.repo_to_push_to(tmp_path / "repo"), project=project, online_store=block)
        (repo / "data" / "registry.db").unlink()
        kit.apply(repo)
        yield repo
        forget_redis(project)


def test_what_is_pushed_and_recomputed_is_read_from_redis_as_from_sqlite(repo: Path, tmp_path: Path) -> None:
    whole, log = kit.materialized_repo(tmp_path / "whole"), kit.log_of(repo)
    store = kit.open_store(repo)
    for start in range(0, len(log), 20):
        store.push("behavior_push", kit.frame(log.slice(start, 20)))
    users = kit.users_of(repo)
    expected = kit.online(kit.open_store(whole), users, *EVERY_VIEW)
    assert kit.online(store, users, *EVERY_VIEW) == expected
    # A late behavior leaves the event time of the sequence as it is; Feast's own write would pass over it.
    store.push("behavior_push", kit.behavior("u0005", "i0001", at=kit.START - timedelta(days=9)))
    found = kit.online(store, ["u0005"], "behavior_sequence")["behavior_sequence__behavior_count"]
    kit.close(store)
    place = users.index("u0005")
    assert found == [expected["behavior_sequence__behavior_count"][place] + 1]


def test_a_redis_that_is_away_fails_no_push_and_what_is_missing_is_written_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo")
    usual = (repo / "feature_store.yaml").read_text(encoding="utf-8")
    kit.set_keys(repo, online_store={"type": "redis", "connection_string": "127.0.0.1:1"})
    store, log = kit.open_store(repo), kit.log_of(repo)
    with caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
        store.push("behavior_push", kit.frame(log.slice(0, 40)), to=PushMode.ONLINE)
    kit.close(store)
    (record,) = caplog.records
    assert "features are left to the next materialization: The online store, Redis at 127.0.0.1:1" in record.message
    assert repo_status(repo)["behaviors"] == 40
    (repo / "feature_store.yaml").write_text(usual, encoding="utf-8")
    store = kit.open_store(repo)
    store.push("behavior_push", kit.frame(log.slice(40)))
    store.materialize(kit.START, kit.START + timedelta(days=1))
    kit.close(store)
    whole = kit.materialized_repo(tmp_path / "whole")
    users = kit.users_of(repo)
    assert kit.online(kit.open_store(repo), users, *EVERY_VIEW) == kit.online(kit.open_store(whole), users, *EVERY_VIEW)


def sequence_of(repo: Path, user: str) -> list[str] | None:
    (found,) = kit.online(kit.open_store(repo), [user], "behavior_sequence")["behavior_sequence__item_ids"]
    return found


@pytest.mark.parametrize("on_the_fly", ["worker", "background"])
def test_behaviors_that_fill_no_partition_are_shown_by_whoever_works_next_once_the_store_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, on_the_fly: str
) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker")
    usual = (repo / "feature_store.yaml").read_text(encoding="utf-8")
    kit.set_engine(repo, on_the_fly=on_the_fly)
    kit.set_keys(repo, online_store={"type": "redis", "connection_string": "127.0.0.1:1"})
    store = kit.open_store(repo)
    with caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
        store.push("behavior_push", kit.behavior("u0005", "i0001", at=kit.END - timedelta(days=9)))
    kit.close(store)
    assert LEFT[on_the_fly] in caplog.text
    assert repo_status(repo)["waiting_users"] == 1
    (repo / "feature_store.yaml").write_text(usual, encoding="utf-8")
    assert sequence_of(repo, "u0005") is None
    job = open_repo_job(repo)
    job.drain(Report())
    job.memory.close()
    assert kit.online(kit.open_store(repo), ["u0005"], "behavior_sequence")["behavior_sequence__item_ids"] == [
        ["i0001"]
    ]
    assert repo_status(repo)["waiting_users"] == 0
