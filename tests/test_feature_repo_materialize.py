"""`feast materialize`: once is enough, in any windows, and after whatever went wrong."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from liber_feast import encoding
from liber_feast.errors import BadWindow, LiberError, StoreNotReady
from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit


def materialize(repo: Path) -> None:
    store = kit.open_store(repo)
    store.materialize(kit.START, kit.END)
    kit.close(store)


def rows_of(repo: Path) -> dict[str, list[dict[str, object]]]:
    return {table: kit.published(repo, table, without=()) for table in kit.PUBLISHED_TABLES}


def test_a_second_materialization_calls_no_backend_and_adds_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, learner = kit.materialized_repo(tmp_path / "repo"), kit.WatchedLearner()

    def refuse(_encoding: encoding.Encoding) -> None:
        raise AssertionError("a second run opened BERT")

    kit.use(learner, monkeypatch)
    monkeypatch.setattr(encoding.Encoding, "bert", refuse)
    rows, versions, memory = rows_of(repo), kit.delta_versions(repo), kit.memory_rows(repo)
    features = kit.online(kit.open_store(repo), kit.users_of(repo))
    materialize(repo)
    assert learner.call_count == 0
    assert (rows_of(repo), kit.delta_versions(repo)) == (rows, versions)
    assert kit.online(kit.open_store(repo), kit.users_of(repo)) == features
    after = kit.memory_rows(repo)
    assert {name for name in memory if memory[name] != after[name]} == {"users"}  # who counts the duplicates
    assert repo_status(repo)["duplicate_behaviors"] == len(memory["behaviors"])


def test_every_sealed_partition_costs_one_summary_and_a_shift_if_it_has_a_predecessor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, learner = kit.loaded_repo(tmp_path / "repo"), kit.WatchedLearner()
    kit.use(learner, monkeypatch)
    materialize(repo)
    users = {row["user_id"] for row in kit.published(repo, "partition_summary")}
    assert learner.call_count == 2 * len(kit.published(repo, "partition_summary")) - len(users)
    assert learner.call_count == kit.SEALED_COUNT + kit.SHIFT_COUNT


def test_windows_that_overlap_equal_one_window(tmp_path: Path) -> None:
    whole, parts = kit.materialized_repo(tmp_path / "whole"), kit.repo_to_push_to(tmp_path / "parts")
    store, times = kit.open_store(parts), kit.log_of(parts)["event_timestamp"].to_pylist()
    for start, end in ((0, 20), (20, 50), (45, len(times) - 1)):
        store.materialize(times[start], times[end])
    kit.close(store)
    for table in kit.PUBLISHED_TABLES:
        assert kit.published(parts, table) == kit.published(whole, table), table
    users = kit.users_of(whole)
    assert kit.online(kit.open_store(parts), users) == kit.online(kit.open_store(whole), users)


def test_incremental_materialization_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    whole, parts = kit.materialized_repo(tmp_path / "whole"), kit.repo_to_push_to(tmp_path / "parts")
    times = kit.log_of(parts)["event_timestamp"].to_pylist()
    store = kit.open_store(parts)
    store.materialize(kit.START, times[30])
    for end in (times[50], kit.END):
        store.materialize_incremental(end)
    kit.close(store)
    for table in kit.PUBLISHED_TABLES:
        assert kit.published(parts, table) == kit.published(whole, table), table


@pytest.mark.parametrize("limit", [0, 5, 20], ids=["at once", "among summaries", "among shifts"])
def test_a_run_after_a_failed_one_pays_for_what_is_missing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    whole, repo = kit.materialized_repo(tmp_path / "whole"), kit.loaded_repo(tmp_path / "repo")
    failing, working = kit.WatchedLearner(limit=limit), kit.WatchedLearner()
    kit.use(failing, monkeypatch)
    with pytest.raises(LiberError, match="does not answer"):
        materialize(repo)
    assert not kit.open_store(repo).get_feature_view("partition_summary").materialization_intervals
    assert not any(rows_of(repo).values())
    kit.use(working, monkeypatch)
    materialize(repo)
    assert working.call_count == kit.SEALED_COUNT + kit.SHIFT_COUNT - limit
    for table in kit.PUBLISHED_TABLES:
        assert kit.published(repo, table) == kit.published(whole, table), table


def test_an_end_in_the_future_seals_no_cache_that_is_not_idle_yet(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", partition={"condition": "time", "idle_s": "2d"})
    now = datetime.now(UTC)
    days = {"idle": (9, 8), "live": (1, 0.5)}
    rows = [kit.behavior(user, "i0001", at=now - timedelta(days=ago)) for user, agos in days.items() for ago in agos]
    log = pa.Table.from_pandas(pd.concat(rows), preserve_index=False)
    write_deltalake(str(repo / "data" / "behaviors"), log, mode="overwrite")
    store = kit.open_store(repo)
    store.materialize(kit.START, now + timedelta(days=30))
    kit.close(store)
    assert [row["user_id"] for row in kit.published(repo, "partition_summary")] == ["idle"]
    assert repo_status(repo)["behaviors"] == 4


def test_views_of_feast_are_materialized_by_its_own_engine(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    found = kit.open_store(repo).get_online_features(["user_profile:profile"], [{"user_id": "u0001"}]).to_dict()
    assert found["profile"][0]


def test_some_views_can_be_materialized_alone(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    store = kit.open_store(repo)
    store.materialize(kit.START, kit.END, feature_views=["item_attributes"])
    assert not (repo / "data" / "memory.db").exists()
    store.materialize(kit.START, kit.END, feature_views=["partition_summary"])
    kit.close(store)
    assert kit.published(repo, "partition_summary")


def test_a_store_without_views_is_not_ready(tmp_path: Path) -> None:
    store = kit.open_store(kit.copy_feature_repo(tmp_path / "repo"))
    with pytest.raises(StoreNotReady, match="Run `feast apply`"):
        store.materialize(kit.START, kit.END)


def test_a_window_that_ends_before_it_starts_is_refused(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    store = kit.open_store(repo)
    with pytest.raises(ValueError, match="greater than the given end_date"):
        store.materialize(kit.END, kit.START)
    with pytest.raises(BadWindow, match="after its end"):
        store.materialize_incremental(kit.END - timedelta(days=300))
    kit.close(store)
