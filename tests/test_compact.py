"""Compaction: the same rows in fewer files, readable all the time, and no number of a publication comes twice."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from deltalake import DeltaTable

from liber_feast.cli import app
from liber_feast.compact import compact as compact_repo
from liber_feast.compact import compact_published, retention_hours, tidy
from liber_feast.delta_maintenance import Place, compact
from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.memory import Memory
from liber_feast.memory.publications import newest_number
from liber_feast.memory.schema import publications, runs
from liber_feast.publish import VIEWS, Publisher
from tests.memory_parts import behavior, new_memory
from tests.operations_parts import OnlineUsers, published_folder, send, tables_of


def quietly(_line: str) -> None:
    pass


def published_often(folder: Path) -> Publisher:
    publisher = published_folder(folder, OnlineUsers())
    for second in (10, 20, 30):
        send(publisher, [behavior(second + more, user="bob") for more in (0, 1)], folder=folder)
    return publisher


def on_disk(table: Path) -> int:
    return len(list(table.glob("*.parquet")))


def test_the_same_rows_lie_in_one_file_a_table_and_their_log_in_one_checkpoint(tmp_path: Path) -> None:
    publisher = published_often(tmp_path)
    tables = tables_of(tmp_path)
    done = compact_published(publisher, hours=0, say=quietly)
    assert tables_of(tmp_path) == tables
    assert set(done) == set(VIEWS.values())
    for view, one in done.items():
        assert (one.files_before, one.files_after, on_disk(tmp_path / view)) == (5, 1, 1)
        assert one.removed_count == 5
        log = sorted(path.name for path in (tmp_path / view / "_delta_log").iterdir())
        assert len([name for name in log if name.endswith(".json")]) <= 2


def test_only_files_that_were_there_are_counted_as_removed(tmp_path: Path) -> None:
    publisher = published_often(tmp_path)
    first, second = (compact_published(publisher, hours=0, say=quietly) for _ in range(2))
    assert {one.removed_count for one in first.values()} == {5}
    assert {one.removed_count for one in second.values()} == {0}


def test_within_the_retention_files_and_versions_stay(tmp_path: Path) -> None:
    publisher = published_often(tmp_path)
    table = tmp_path / "partition_summary"
    old = DeltaTable(str(table), version=3).to_pyarrow_table()
    done = compact_published(publisher, hours=24, say=quietly)["partition_summary"]
    assert (done.removed_count, done.files_after, on_disk(table)) == (0, 1, 6)
    assert DeltaTable(str(table), version=3).to_pyarrow_table() == old


def test_what_a_killed_writer_left_goes_after_an_hour(tmp_path: Path) -> None:
    published_often(tmp_path)
    table = tmp_path / "partition_summary"
    own = next(table.glob("*.parquet"))
    fresh, old = table / "part-00000-fresh-c000.parquet", table / "part-00000-old-c000.parquet"
    for path in (fresh, old):
        shutil.copy(own, path)
    os.utime(old, (time.time() - 7_200,) * 2)
    compact(Place(path=str(table)), retention_hours=0)
    assert fresh.exists()
    assert not old.exists()


def test_what_is_published_afterwards_has_new_numbers_and_is_there_once(tmp_path: Path) -> None:
    publisher = published_often(tmp_path)
    compact_published(publisher, hours=0, say=quietly)
    with publisher.memory.reading() as connection:
        before = newest_number(connection)
    tidy(publisher.memory)
    send(publisher, [behavior(second, user="bob") for second in (40, 41)], folder=tmp_path)
    with publisher.memory.reading() as connection:
        numbers = connection.scalars(sa.select(publications.c.publication_id)).all()
    assert min(number for number in numbers if number > before) == before + 1
    assert len(tables_of(tmp_path)["fused_vector"]) == 6 + 3 + 1


def test_publications_without_rows_go_but_the_newest_and_those_that_are_not_done(tmp_path: Path) -> None:
    memory = Memory.open("sqlite:///memory.db", base=tmp_path)
    with memory.writing() as connection:
        for done in (1, None, 1, 1):
            connection.execute(publications.insert().values(stage="summary", created_time=1, done_time=done))
    assert tidy(memory) == {"publications_removed": 2, "runs_removed": 0}
    with memory.reading() as connection:
        assert connection.scalars(sa.select(publications.c.publication_id)).all() == [2, 4]
    assert tidy(memory)["publications_removed"] == 0


def test_the_reports_of_the_last_thousand_runs_stay() -> None:
    memory = new_memory()
    with memory.writing() as connection:
        connection.execute(runs.insert(), [{"finished_time": number, "report": "{}"} for number in range(1_003)])
    assert tidy(memory)["runs_removed"] == 3
    with memory.reading() as connection:
        assert connection.scalar(sa.select(sa.func.min(runs.c.finished_time))) == 3


def test_the_newest_version_is_readable_all_the_time(tmp_path: Path) -> None:
    publisher = published_often(tmp_path)
    table = str(tmp_path / "fused_vector")
    count, ended, failures = DeltaTable(table).count(), threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            found = DeltaTable(table).count()
            if found != count:
                failures.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(3):
            compact_published(publisher, hours=1, say=quietly)
    finally:
        ended.set()
        reader.join()
    assert failures == []


@pytest.mark.parametrize(("text", "hours"), [("7d", 168), ("1h", 1), (" 36h ", 36)])
def test_a_retention_is_hours_or_days(text: str, hours: int) -> None:
    assert retention_hours(text) == hours


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "30m", "7 days", "999999d"])
def test_what_is_no_retention_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no number of hours or days"):
        retention_hours(text)


def test_a_retention_under_an_hour_is_refused_and_now_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short.*--now"):
        compact_repo(tmp_path, retention="0h", is_now=False, say=quietly)
    with pytest.raises(StoreNotReady, match=r"no feature_store\.yaml"):
        compact_repo(tmp_path, retention="0h", is_now=True, say=quietly)


def test_a_retention_beside_now_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        app(["compact", "--now", "--retention", "1d", "--repo", str(tmp_path)], standalone_mode=False)
