"""Writing a data set into a feature repo: Delta tables and dataset.json, all or nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from liber_feast.behavior import check_behaviors
from liber_feast.datasets import DataSet, describe, read_data_set, write_data_set
from liber_feast.datasets import writer as module
from liber_feast.errors import ConfigError, DataSetError

UNWRITABLE = pa.table([pa.array(["u1"]), pa.array(["u1"])], names=["user_id", "user_id"])


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: test\n", encoding="utf-8")
    return tmp_path


def stored(repo: Path, name: str) -> pa.Table:
    return DeltaTable(str(repo / "data" / name)).to_pyarrow_table()


def small(*, users: int = 4) -> DataSet:
    return read_data_set("synthetic", users=users, behaviors=users * 10)


def test_the_tables_are_written_as_they_are_but_for_the_derived_behavior_ids(repo: Path) -> None:
    data_set = small()
    write_data_set(data_set, repo)
    assert stored(repo, "behaviors").column_names == ["user_id", "item_id", "rating", "event_timestamp"]
    given = {"behaviors": data_set.behaviors.drop_columns("behavior_id"), "items": data_set.items}
    for name, table in (given | {"users": data_set.users}).items():
        written = stored(repo, name).cast(table.schema)
        assert sorted(map(str, written.to_pylist())) == sorted(map(str, table.to_pylist()))


def test_the_written_behaviors_are_the_same_behaviors_when_read_again(repo: Path) -> None:
    data_set = small()
    write_data_set(data_set, repo)
    again = check_behaviors(stored(repo, "behaviors"), scale=data_set.scale, now=datetime.now(UTC))
    assert again.table.equals(data_set.behaviors)


def test_items_and_users_lie_in_the_window_and_before_every_behavior(repo: Path) -> None:
    write_data_set(small(), repo)
    said = json.loads((repo / "data" / "dataset.json").read_text(encoding="utf-8"))
    start = datetime.fromisoformat(said["start"])
    for name in ("items", "users"):
        assert set(stored(repo, name)["event_timestamp"].to_pylist()) == {start}
    assert start <= min(stored(repo, "behaviors")["event_timestamp"].to_pylist())


def test_dataset_json_says_what_was_loaded_and_the_window_that_materializes_all(repo: Path) -> None:
    data_set = small()
    write_data_set(data_set, repo)
    said = json.loads((repo / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert said == json.loads(json.dumps(describe(data_set)))
    assert said["name"] == "synthetic"
    assert said["prompt"] == "movielens"
    assert said["scale"] == {"low": 1.0, "high": 5.0, "like_above": 3.0}
    assert said["counts"]["behaviors"] == 40
    first, last, start, end = (datetime.fromisoformat(said[n]) for n in ("first_time", "last_time", "start", "end"))
    assert start == first.replace(hour=0, minute=0, second=0)
    assert end == last + timedelta(seconds=1)


def test_the_end_of_the_window_is_a_whole_second_past_a_time_with_a_fraction() -> None:
    data_set = small()
    times = [datetime.fromisoformat("2023-08-08T23:11:14.122000+00:00")] * len(data_set.behaviors)
    behaviors = data_set.behaviors.set_column(3, "event_timestamp", pa.array(times, pa.timestamp("us", tz="UTC")))
    assert describe(replace(data_set, behaviors=behaviors))["end"] == "2023-08-08T23:11:16+00:00"


def test_a_second_load_replaces_the_first_with_other_columns_and_leaves_the_rest_of_data_alone(repo: Path) -> None:
    write_data_set(small(), repo)
    (repo / "data" / "memory.db").write_text("kept", encoding="utf-8")
    second = small(users=6)
    write_data_set(replace(second, items=second.items.drop_columns("creator")), repo)
    assert stored(repo, "users").num_rows == 6
    assert "creator" not in stored(repo, "items").column_names
    names = sorted(path.name for path in (repo / "data").iterdir())
    assert names == ["behaviors", "dataset.json", "items", "memory.db", "users"]


def test_a_folder_that_is_no_feature_repo_is_refused_and_not_touched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no feature_store.yaml"):
        write_data_set(small(), tmp_path)
    with pytest.raises(ConfigError, match="no feature_store.yaml"):
        write_data_set(small(), tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_tables_as_they_were_and_nothing_behind(repo: Path) -> None:
    first = small()
    write_data_set(first, repo)
    with pytest.raises(DataSetError, match="could not write synthetic: .*The tables are as they were"):
        write_data_set(replace(small(users=6), users=UNWRITABLE), repo)
    assert stored(repo, "behaviors").num_rows == len(first.behaviors)
    names = sorted(path.name for path in (repo / "data").iterdir())
    assert names == ["behaviors", "dataset.json", "items", "users"]


@pytest.mark.parametrize("values", [pa.nulls(1), pa.array([1], pa.duration("s"))], ids=["null", "duration"])
def test_a_column_of_a_type_that_is_not_stored_is_refused_by_name(repo: Path, values: pa.Array) -> None:
    items = small().items.slice(0, 1).append_column("odd", values)
    with pytest.raises(DataSetError, match="column 'odd' of items has type"):
        write_data_set(replace(small(), items=items), repo)
    assert list((repo / "data").iterdir()) == []


def test_a_file_in_the_place_of_the_data_folder_is_one_line(repo: Path) -> None:
    (repo / "data").write_text("in the way", encoding="utf-8")
    with pytest.raises(DataSetError, match="could not write synthetic: .*File exists"):
        write_data_set(small(), repo)
    assert (repo / "data").read_text(encoding="utf-8") == "in the way"


def test_a_failed_first_write_leaves_no_tables(repo: Path) -> None:
    with pytest.raises(DataSetError, match="could not write"):
        write_data_set(replace(small(), users=UNWRITABLE), repo)
    assert list((repo / "data").iterdir()) == []


@pytest.mark.parametrize("loaded_before", [True, False])
def test_a_rename_that_fails_midway_puts_everything_back(tmp_path: Path, loaded_before: bool) -> None:
    data, loading = tmp_path / "data", tmp_path / "data" / ".loading-1"
    loading.mkdir(parents=True)
    for name in ("behaviors", "items"):  # users and dataset.json are not there, so their renames fail
        (loading / name).mkdir()
        (loading / name / "new").touch()
    if loaded_before:
        for name in ("behaviors", "items", "users"):
            (data / name).mkdir()
            (data / name / "old").touch()
        (data / "dataset.json").write_text("old", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        module._swap(loading, data)
    found = sorted(path.relative_to(data).as_posix() for path in data.rglob("*") if ".loading-1" not in path.parts)
    before = ["behaviors", "behaviors/old", "dataset.json", "items", "items/old", "users", "users/old"]
    assert found == (before if loaded_before else [])


def test_what_an_interrupted_load_left_is_removed_but_not_what_runs(repo: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for process in (ended, running):
            (repo / "data" / f".loading-{process.pid}" / "behaviors").mkdir(parents=True)
        (repo / "data" / f".loading-{10**30}").mkdir()
        write_data_set(small(), repo)
        left = [path.name for path in (repo / "data").glob(".loading-*")]
        assert left == [f".loading-{running.pid}"]
    finally:
        running.communicate()
