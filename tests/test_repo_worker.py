"""`liber worker` on a feature repo whose pushes leave texts to it, and the thread that does the same in the process."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from liber_feast import cli
from liber_feast.errors import StoreNotReady
from liber_feast.repo import repo_status, run_workers
from tests import feature_repo_kit as kit

STREAM = ("waiting_users", "leased_users", "freshness_count")


def pushed(repo: Path) -> dict[str, list[Any]]:
    """Push the log in three parts; return what is online of every user then."""
    store, log = kit.open_store(repo), kit.log_of(repo)
    for start in range(0, len(log), 1 + len(log) // 3):
        store.push("behavior_push", kit.frame(log.slice(start, 1 + len(log) // 3)))
    found = kit.online(store, kit.users_of(repo))
    kit.close(store)
    return found


def assert_as_materialized(repo: Path, tmp_path: Path) -> None:
    whole = kit.materialized_repo(tmp_path / "whole")
    for table in kit.PUBLISHED_TABLES:
        assert kit.published(repo, table) == kit.published(whole, table), table
    users = kit.users_of(repo)
    assert kit.online(kit.open_store(repo), users) == kit.online(kit.open_store(whole), users)


def test_what_pushes_leave_to_workers_is_online_after_one_as_if_it_was_materialized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker")
    found = pushed(repo)
    assert set(found["partition_summary__summary"]) == {None}
    assert all(found["behavior_sequence__behavior_count"])
    waiting = repo_status(repo)
    assert waiting["waiting_users"] == len(kit.users_of(repo)) - 1  # one has no partition
    assert waiting["oldest_waiting_s"] > 0
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["liber", "worker", "--once", "--repo", str(repo)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    said = capfd.readouterr()
    assert said.out == ""
    assert f"users={waiting['waiting_users']} summaries={kit.SEALED_COUNT} shifts={kit.SHIFT_COUNT}" in said.err
    assert_as_materialized(repo, tmp_path)
    done = repo_status(repo)
    assert [done[name] for name in STREAM] == [0, 0, kit.SEALED_COUNT]
    assert 0 < done["freshness_p50_s"] <= done["freshness_p99_s"]


def test_what_pushes_leave_to_the_thread_of_their_process_is_online_soon(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="background")
    pushed(repo)
    deadline = time.monotonic() + 60
    while repo_status(repo)["waiting_users"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert_as_materialized(repo, tmp_path)


def test_a_repo_that_was_never_applied_has_no_workers(tmp_path: Path) -> None:
    with pytest.raises(StoreNotReady, match="feast apply"):
        run_workers(kit.copy_feature_repo(tmp_path / "repo"), concurrency=2, once=True)
