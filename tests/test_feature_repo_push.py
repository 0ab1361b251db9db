"""Pushed behaviors: the same rows as one `feast materialize`, whatever the micro-batches."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore
from feast.data_source import PushMode

from liber_feast.errors import InvalidBehaviors
from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit

EVERY_VIEW = ("behaviors", *kit.LIBER_VIEWS)


def push(store: FeatureStore, rows: pd.DataFrame, *, to: PushMode = PushMode.ONLINE) -> None:
    store.push("behavior_push", rows, to=to)


def micro_batches(log: pa.Table, *, seed: int) -> Iterator[pd.DataFrame]:
    """Yield the log in order, cut at random; within a batch the rows are in any order."""
    random, start = Random(seed), 0
    while start < len(log):
        size = random.choice((1, 1, 2, 5, 13))
        yield kit.frame(log.slice(start, size)).sample(frac=1, random_state=seed)
        start += size


def assert_same_features(one: Path, other: Path) -> None:
    for table in kit.PUBLISHED_TABLES:
        assert kit.published(one, table) == kit.published(other, table), table
    users = kit.users_of(one)
    assert kit.online(kit.open_store(one), users, *EVERY_VIEW) == kit.online(kit.open_store(other), users, *EVERY_VIEW)


def history(repo: Path) -> list[dict[str, Any]]:
    """Return every LIBER feature of every user as of every time of the log, and as of now.

    Of behaviors at one time the raw view `behaviors` shows the one that was written last, as Feast has it.
    """
    store, users = kit.open_store(repo), kit.users_of(repo)
    times = [*sorted(set(kit.log_of(repo)["event_timestamp"].to_pylist())), datetime.now(UTC)]
    entities = pd.DataFrame([(user, time) for time in times for user in users], columns=["user_id", "event_timestamp"])
    features = kit.features_of(store, *kit.LIBER_VIEWS)
    found = store.get_historical_features(entities, features, full_feature_names=True).to_arrow()
    rows: list[dict[str, Any]] = found.drop_columns(["event_timestamp"]).to_pylist()
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_pushing_in_random_micro_batches_equals_one_materialization(tmp_path: Path, seed: int) -> None:
    whole, pushed = kit.materialized_repo(tmp_path / "whole"), kit.repo_to_push_to(tmp_path / "pushed")
    store = kit.open_store(pushed)
    for batch in micro_batches(kit.log_of(pushed), seed=seed):
        push(store, batch)
    kit.close(store)
    assert_same_features(whole, pushed)
    assert len(kit.published(pushed, "partition_shift")) == kit.SHIFT_COUNT


@pytest.mark.parametrize(("share", "seed"), [(0.0, 3), (0.4, 4)], ids=["nothing", "a part"])
def test_pushing_to_memory_and_log_equals_one_materialization_of_the_full_log(
    tmp_path: Path, share: float, seed: int
) -> None:
    whole, pushed = kit.materialized_repo(tmp_path / "whole"), kit.repo_to_push_to(tmp_path / "pushed")
    log = kit.log_of(pushed)
    known = int(share * len(log))
    write_deltalake(str(pushed / "data" / "behaviors"), log.slice(0, known), mode="overwrite")
    store = kit.open_store(pushed)
    store.materialize(kit.START, kit.END)
    for batch in micro_batches(log.slice(known), seed=seed):
        push(store, batch, to=PushMode.ONLINE_AND_OFFLINE)
    kit.close(store)
    assert kit.log_of(pushed) == log
    assert_same_features(whole, pushed)
    assert history(pushed) == history(whole)


CONDITIONS: dict[str, dict[str, Any]] = {
    "count": {"condition": "count", "size": 3},
    "span": {"condition": "time", "span_s": "30d"},
    "span and idle": {"condition": "time", "span_s": "30d", "idle_s": "10d"},
    "drift": {"condition": "drift", "threshold": 0.6, "minimum": 2, "maximum": 5},
}


@pytest.mark.parametrize("partition", CONDITIONS.values(), ids=CONDITIONS)
def test_pushes_equal_one_materialization_under_every_condition(tmp_path: Path, partition: dict[str, Any]) -> None:
    whole, pushed = (kit.repo_to_push_to(tmp_path / name, partition=partition) for name in ("whole", "pushed"))
    store = kit.open_store(whole)
    store.materialize(kit.START, kit.END)
    kit.close(store)
    store = kit.open_store(pushed)
    for batch in micro_batches(kit.log_of(pushed), seed=5):
        push(store, batch)
    store.materialize(kit.END, kit.END)  # no behavior lies there; a cache that is idle at the end is sealed
    kit.close(store)
    counts = {row["behavior_count"] for row in kit.published(whole, "partition_summary")}
    assert len(counts) > 1 or partition["condition"] == "count"
    assert_same_features(whole, pushed)


def test_materializing_the_start_and_pushing_the_rest_equals_one_materialization(tmp_path: Path) -> None:
    whole, mixed = kit.materialized_repo(tmp_path / "whole"), kit.repo_to_push_to(tmp_path / "mixed")
    log = kit.log_of(mixed)
    middle = log["event_timestamp"][len(log) // 2].as_py()
    store = kit.open_store(mixed)
    store.materialize(kit.START, middle)
    push(store, kit.frame(log))
    kit.close(store)
    assert_same_features(whole, mixed)


def test_rows_without_order_in_one_push_are_sorted(tmp_path: Path) -> None:
    whole, pushed = kit.materialized_repo(tmp_path / "whole"), kit.repo_to_push_to(tmp_path / "pushed")
    store = kit.open_store(pushed)
    push(store, kit.frame(kit.log_of(pushed)).iloc[::-1])
    kit.close(store)
    assert_same_features(whole, pushed)


def test_pushes_at_the_same_time_pay_for_every_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, learner = kit.repo_to_push_to(tmp_path / "repo"), kit.WatchedLearner(seconds=0.02)
    kit.use(learner, monkeypatch)
    store, log = kit.open_store(repo), kit.log_of(repo).slice(0, 40)

    def push_every_fourth(first: int) -> None:
        for row in range(first, len(log), 4):
            push(store, kit.frame(log.slice(row, 1)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push_every_fourth, range(4)))
    kit.close(store)
    summaries, shifts, vectors = (kit.published(repo, table) for table in kit.PUBLISHED_TABLES[:3])
    assert learner.call_count == len(summaries) + len(shifts) > 10
    assert len({(row["user_id"], row["partition_index"]) for row in vectors}) == len(vectors) == len(summaries)
    assert repo_status(repo)["behaviors"] == len(log)


def test_a_push_that_fits_the_pca_gives_every_earlier_partition_its_vector(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    store, log = kit.open_store(repo), kit.log_of(repo)
    waiting = []
    for batch in micro_batches(log, seed=1):
        push(store, batch)
        waiting.append((len(kit.published(repo, "partition_summary")), len(kit.published(repo, "partition_vector"))))
    kit.close(store)
    assert any(summaries and not vectors for summaries, vectors in waiting)
    assert waiting[-1] == (kit.SEALED_COUNT, kit.SEALED_COUNT)
    assert all(vectors in {0, summaries} for summaries, vectors in waiting)


def test_a_working_folder_elsewhere_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, elsewhere = kit.repo_to_push_to(tmp_path / "repo"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    store = kit.open_store(repo)
    push(store, kit.frame(kit.log_of(repo).slice(0, 5)))
    kit.close(store)
    assert repo_status(repo)["behaviors"] == 5
    assert not list(elsewhere.iterdir())


def test_items_without_attributes_are_summarized_without_them(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo")
    store = kit.open_store(repo)
    for number in range(kit.SIZE):
        push(store, kit.behavior("new", f"unknown-{number}", at=kit.START + timedelta(hours=number)))
    kit.close(store)
    (row,) = kit.published(repo, "partition_summary")
    assert (row["user_id"], row["partition_index"], row["behavior_count"]) == ("new", 0, kit.SIZE)
    assert "None of the films came with details." in row["summary"]


def test_duplicates_are_counted_and_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    store, users = kit.open_store(repo), kit.users_of(repo)
    before = kit.online(store, users, *EVERY_VIEW), kit.delta_versions(repo), repo_status(repo)["behaviors"]
    again = kit.frame(kit.log_of(repo).slice(3, 7))
    with caplog.at_level("INFO", logger="liber_feast.engine"):
        push(store, pd.concat([again, again]))
    kit.close(store)
    assert "0 behaviors (14 duplicates, 0 late)" in caplog.text
    assert (kit.online(store, users, *EVERY_VIEW), kit.delta_versions(repo), repo_status(repo)["behaviors"]) == before
    assert repo_status(repo)["duplicate_behaviors"] == 14  # those that repeat within the push as if they came after it


def test_a_late_behavior_is_counted_and_replaces_nothing_newer_online(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    store = kit.open_store(repo)
    before = kit.online(store, ["u0002"], *EVERY_VIEW)
    push(store, kit.behavior("u0002", "i0001", at=kit.START, rating=1.0))
    after = kit.online(store, ["u0002"], *EVERY_VIEW)
    assert repo_status(repo)["late_behaviors"] == 1
    # u0002 has 7 behaviors, so this one fills its second partition: newer than the first, although from before it.
    changed = {name for name in before if before[name] != after[name]}
    assert changed & {name for name in before if name.startswith("behavior")} == {"behavior_sequence__behavior_count"}
    assert after["behavior_sequence__behavior_count"] == [8]
    assert (before["partition_summary__partition_index"], after["partition_summary__partition_index"]) == ([0], [1])
    seal_times = [
        row["event_timestamp"] for row in kit.published(repo, "partition_summary") if row["user_id"] == "u0002"
    ]
    assert seal_times == sorted(set(seal_times))
    push(store, kit.behavior("u0002", "i0002", at=kit.START + timedelta(hours=1), rating=1.0))
    kit.close(store)
    last = kit.online(store, ["u0002"], *EVERY_VIEW)
    assert {name for name in after if last[name] != after[name]} == {"behavior_sequence__behavior_count"}


def test_pushing_online_and_offline_and_materializing_the_log_adds_nothing_twice(tmp_path: Path) -> None:
    repo, now = kit.materialized_repo(tmp_path / "repo"), datetime(2023, 12, 30, tzinfo=UTC)
    store, log_size = kit.open_store(repo), len(kit.log_of(repo))
    rows = pd.concat([kit.behavior("u0005", f"i000{number}", at=now + timedelta(hours=number)) for number in range(5)])
    push(store, rows, to=PushMode.ONLINE_AND_OFFLINE)
    kit.close(store)
    assert len(kit.log_of(repo)) == log_size + 5
    memory, versions = kit.memory_rows(repo), kit.delta_versions(repo)
    assert len(memory["partitions"]) == kit.SEALED_COUNT + 2
    store = kit.open_store(repo)
    store.materialize(kit.START, kit.END)
    kit.close(store)
    assert kit.delta_versions(repo) == versions
    duplicates = repo_status(repo)["duplicate_behaviors"]
    assert duplicates == log_size + 5
    assert {name: rows for name, rows in kit.memory_rows(repo).items() if name != "users"} == {
        name: rows for name, rows in memory.items() if name != "users"
    }


def test_behaviors_pushed_offline_alone_wait_in_the_log_for_a_materialization(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    store = kit.open_store(repo)
    before = repo_status(repo)["behaviors"]
    push(store, kit.behavior("u0005", "i0009", at=kit.END - timedelta(days=1)), to=PushMode.OFFLINE)
    assert repo_status(repo)["behaviors"] == before
    store.materialize(kit.START, kit.END)
    kit.close(store)
    assert repo_status(repo)["behaviors"] == before + 1


def with_value(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Return a change of the second of two rows."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        values = [rows[column].iloc[0], value]
        kind = object if isinstance(value, str) or value is None else None
        return rows.assign(**{column: pd.Series(values, dtype=kind, index=rows.index)})

    return change


REFUSED = {
    "null user": (with_value("user_id", None), "'user_id' is null in 1 rows, first in row 1"),
    "null item": (with_value("item_id", None), "'item_id' is null in 1 rows, first in row 1"),
    "null time": (with_value("event_timestamp", pd.NaT), "'event_timestamp' is null in 1 rows, first in row 1"),
    "null rating": (with_value("rating", float("nan")), "'rating'"),
    "rating outside": (with_value("rating", 9.0), "a rating outside the scale 0.5 to 5"),
    "far future": (with_value("event_timestamp", pd.Timestamp("2200-01-01", tz="UTC")), "a time in the future"),
    "no time": (lambda rows: rows.drop(columns="event_timestamp"), "column 'event_timestamp' is missing"),
    "no user": (lambda rows: rows.drop(columns="user_id"), "column 'user_id' is missing"),
    "text rating": (lambda rows: rows.assign(rating="good"), "'rating' has type"),
    "text time": (lambda rows: rows.assign(event_timestamp="yesterday"), "no ISO 8601 time"),
    "unix time": (lambda rows: rows.assign(event_timestamp=1_700_000_000), "it must be a timestamp"),
    "integer users": (lambda rows: rows.assign(user_id=[1, 2]), "'user_id' has ids of type int64, but the view says"),
    "integer items": (lambda rows: rows.assign(item_id=[1, 2]), "'item_id' has ids of type int64, but the view says"),
    "mixed ids": (lambda rows: rows.assign(user_id=["u0001", 2]), "values of more than one type"),
}


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repo that no test of this module changes."""
    return kit.materialized_repo(tmp_path_factory.mktemp("push") / "repo")


def two_rows() -> pd.DataFrame:
    times = [kit.END - timedelta(hours=2), kit.END - timedelta(hours=1)]
    return pd.concat([kit.behavior(user, "i0001", at=at) for user, at in zip(("u0001", "u0002"), times, strict=True)])


def state(repo: Path, store: FeatureStore) -> list[Any]:
    online = kit.online(store, kit.users_of(repo), *EVERY_VIEW)
    return [kit.memory_rows(repo), kit.delta_versions(repo), online]


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refused_push_changes_nothing(
    repo: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    store = kit.open_store(repo)
    before = state(repo, store)
    with pytest.raises(InvalidBehaviors, match=message):
        push(store, change(two_rows()))
    kit.close(store)
    assert state(repo, store) == before


UNKNOWN = {
    "an id": {"behavior_id": ["one", "two"]},
    "another column": {"note": ["x", "y"]},
}


@pytest.mark.parametrize("mode", [PushMode.ONLINE, PushMode.ONLINE_AND_OFFLINE], ids=lambda mode: mode.name)
@pytest.mark.parametrize("columns", UNKNOWN.values(), ids=UNKNOWN)
def test_a_column_that_the_log_lacks_is_refused_before_anything_is_taken(
    repo: Path, columns: dict[str, list[str]], mode: PushMode
) -> None:
    (name,) = columns
    store = kit.open_store(repo)
    before = state(repo, store)
    with pytest.raises(InvalidBehaviors, match=f"column '{name}' is not in the log .* or leave it out") as refused:
        push(store, two_rows().assign(**columns), to=mode)
    kit.close(store)
    assert refused.value.column == name
    assert "\n" not in str(refused.value)
    assert state(repo, store) == before


def repo_with_ids(target: Path) -> Path:
    """Return a repo to push to whose empty log has the column behavior_id."""
    repo = kit.repo_to_push_to(target)
    empty = kit.log_of(repo).slice(0, 0).append_column("behavior_id", pa.array([], pa.string()))
    write_deltalake(str(repo / "data" / "behaviors"), empty, mode="overwrite", schema_mode="overwrite")
    return repo


def test_ids_are_used_where_the_log_has_them(tmp_path: Path) -> None:
    repo = repo_with_ids(tmp_path / "repo")
    store, again = kit.open_store(repo), two_rows().iloc[:1]
    push(store, two_rows().assign(behavior_id=["one", "two"]), to=PushMode.ONLINE_AND_OFFLINE)
    push(store, pd.concat([again, again]).assign(behavior_id=["one", "three"]))  # one is known, three a second one
    store.materialize(kit.START, kit.END)
    kit.close(store)
    assert repo_status(repo)["behaviors"] == 3
    log = DeltaTable(str(repo / "data" / "behaviors")).to_pyarrow_table()
    assert sorted(log["behavior_id"].to_pylist()) == ["one", "two"]


def test_a_push_without_ids_is_refused_where_the_log_has_them(tmp_path: Path) -> None:
    repo = repo_with_ids(tmp_path / "repo")
    store = kit.open_store(repo)
    with pytest.raises(InvalidBehaviors, match="column 'behavior_id' is missing; the log .* has it"):
        push(store, two_rows(), to=PushMode.ONLINE_AND_OFFLINE)
    kit.close(store)
    assert not (repo / "data" / "memory.db").exists()


def test_a_column_added_to_the_log_can_be_pushed_from_then_on(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo")
    store, rows = kit.open_store(repo), two_rows().assign(note=["x", "y"])
    with pytest.raises(InvalidBehaviors, match="column 'note' is not in the log"):
        push(store, rows, to=PushMode.ONLINE_AND_OFFLINE)
    log = kit.log_of(repo)
    noted = log.append_column("note", pa.array([""] * len(log)))
    write_deltalake(str(repo / "data" / "behaviors"), noted, mode="overwrite", schema_mode="overwrite")
    push(store, rows, to=PushMode.ONLINE_AND_OFFLINE)
    kit.close(store)
    assert repo_status(repo)["behaviors"] == 2
    assert len(kit.log_of(repo)) == len(log) + 2


def test_feast_refuses_a_push_without_a_feature_of_the_view_by_its_name(repo: Path) -> None:
    store = kit.open_store(repo)
    before = state(repo, store)
    with pytest.raises(KeyError, match="rating"):
        push(store, two_rows().drop(columns="rating"))
    assert state(repo, store) == before


@pytest.mark.parametrize("mode", [PushMode.OFFLINE, PushMode.ONLINE_AND_OFFLINE], ids=lambda mode: mode.name)
def test_a_bad_behavior_does_not_reach_the_log(repo: Path, mode: PushMode) -> None:
    store = kit.open_store(repo)
    before = state(repo, store)
    with pytest.raises(InvalidBehaviors, match="a rating outside the scale"):
        push(store, two_rows().assign(rating=[4.0, 9.0]), to=mode)
    kit.close(store)
    assert state(repo, store) == before
