"""Sources that others write, compact or delete while they are joined."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore, FeatureView, Field
from feast.types import Int64

from liber_feast.errors import RetryableError, StoreNotReady
from liber_feast.offline_read import locate, open_snapshot
from liber_feast.offline_store import LiberOfflineStore
from tests.offline_repo import delta, entity_frame, open_store, parquet, rows_of, times, user, write_parquet

USERS = [f"u{number}" for number in range(200)]
FRAME_TIME = 10_000
WRITER = """
import datetime, os, sys
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

path, stop, tidy = sys.argv[1], sys.argv[2], sys.argv[3] == "tidy"
start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
count = 0
while not os.path.exists(stop):
    count += 1
    rows = pa.table({
        "user_id": [f"u{number}" for number in range(200)],
        "event_timestamp": pa.array([start + datetime.timedelta(seconds=count)] * 200, pa.timestamp("us", tz="UTC")),
        "age": pa.array([count] * 200, pa.int64()),
    })
    write_deltalake(path, rows, mode="overwrite" if count % 5 == 0 else "append")
    if tidy and count % 3 == 0:
        DeltaTable(path).optimize.compact()
    if tidy and count % 4 == 0:
        DeltaTable(path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
"""
STORE = LiberOfflineStore()


def ages_of(count: int, *, users: list[str] = USERS) -> pa.Table:
    columns = {"user_id": users, "event_timestamp": times([count] * len(users)), "age": [count] * len(users)}
    return pa.table(columns)


def view(name: str, source: object) -> FeatureView:
    schema = [Field(name="age", dtype=Int64)]
    return FeatureView(name=name, entities=[user], ttl=timedelta(0), schema=schema, source=source)


@contextmanager
def another_process_writes(path: Path, *, how: str) -> Iterator[None]:
    """Commit to a Delta table from another process, again and again until the block ends."""
    stop = path.with_name("stop")
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(stop), how])
    try:
        wait_until(lambda: DeltaTable(path).version() > 0)
        yield
    finally:
        stop.touch()
        assert process.wait(60) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["commit", "tidy"])
def test_each_join_sees_one_version_of_a_delta_table_that_another_process_writes(tmp_path: Path, how: str) -> None:
    write_deltalake(tmp_path / "ages", ages_of(0))
    store = open_store(tmp_path)
    store.apply([user, view("first", delta("ages", name="first")), view("second", delta("ages", name="second"))])
    frame = entity_frame(USERS, [FRAME_TIME] * len(USERS))
    seen, end = [], time.monotonic() + 30
    with another_process_writes(tmp_path / "ages", how=how):
        while len(set(seen)) < 8 and time.monotonic() < end:
            try:
                rows = rows_of(store, frame, ["first:age", "second:age"], full_feature_names=True)
            except RetryableError as error:  # vacuumed while it was read
                assert "ask again" in error.message
                continue
            versions = {(row["first__age"], row["second__age"]) for row in rows}
            assert len(versions) == 1 and len(rows) == len(USERS)
            first, again = versions.pop()
            assert first == again  # both views on one snapshot
            seen.append(first)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 8


def test_a_table_that_was_vacuumed_while_it_was_read_is_asked_for_again(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "ages", ages_of(1))
    store = open_store(tmp_path)
    ages = view("ages", delta("ages"))
    store.apply([user, ages])
    snapshot = open_snapshot(locate(ages.batch_source, config=store.config, view=ages))
    write_deltalake(tmp_path / "ages", ages_of(2), mode="overwrite")
    DeltaTable(tmp_path / "ages").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(
        RetryableError, match=r"feature view 'ages': .*/ages was vacuumed or rewritten.*ask again"
    ) as caught:
        snapshot.read(["age"])
    assert "\n" not in caught.value.message
    assert rows_of(store, entity_frame(["u0"], [9]), ["ages:age"])[0]["age"] == 2


def test_a_compacted_table_gives_what_it_gave_before(tmp_path: Path) -> None:
    for count in range(6):
        write_deltalake(tmp_path / "ages", ages_of(count), mode="append")
    store = open_store(tmp_path)
    store.apply([user, view("ages", delta("ages"))])
    frame = entity_frame(["u0"] * 6, list(range(6)))
    opened = open_snapshot(locate(delta("ages"), config=store.config))
    before = rows_of(store, frame, ["ages:age"])
    DeltaTable(tmp_path / "ages").optimize.compact()
    assert rows_of(store, frame, ["ages:age"]) == before
    assert opened.read(["age"]).num_rows == 6 * len(USERS)  # the files stay until a vacuum
    DeltaTable(tmp_path / "ages").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert rows_of(store, frame, ["ages:age"]) == before
    assert [row["age"] for row in before] == list(range(6))


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_a_source_that_is_deleted_while_it_is_read_is_reported_as_missing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "ages").mkdir()
    if kind == "delta":
        write_deltalake(tmp_path / "ages", ages_of(1))
    else:
        write_parquet(tmp_path / "ages/1.parquet", ages_of(1).to_pydict())
    source = delta("ages") if kind == "delta" else parquet("ages")
    snapshot = open_snapshot(locate(source, config=open_store(tmp_path).config))
    for file in sorted((tmp_path / "ages").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(StoreNotReady, match="there is no .* at .*/ages"):
        snapshot.read(["age"])


def test_each_join_sees_the_rows_before_or_after_a_parquet_file_is_written(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ages.parquet", ages_of(0).to_pydict())
    store = open_store(tmp_path)
    ages = view("ages", parquet("ages.parquet"))
    store.apply([user, ages])
    frame = entity_frame(USERS, [FRAME_TIME] * len(USERS))

    def write_all() -> None:
        for count in range(1, 20):
            STORE.offline_write_batch(store.config, ages, ages_of(count), None)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_all)
        while not writing.done():
            try:
                assert len({row["age"] for row in rows_of(store, frame, ["ages:age"])}) == 1
            except RetryableError as error:  # rewritten while it was read
                assert "ask again" in error.message
        writing.result()
    assert {row["age"] for row in rows_of(store, frame, ["ages:age"])} == {19}


def test_of_rows_that_several_write_to_a_delta_table_at_once_none_is_lost(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "ages", ages_of(0))
    store = open_store(tmp_path)
    ages = view("ages", delta("ages"))
    store.apply([user, ages])

    def write(writer: int) -> None:
        for count in range(1, 6):
            STORE.offline_write_batch(store.config, ages, ages_of(count, users=[f"writer{writer}-{count}"]), None)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    asked = [f"writer{writer}-{count}" for writer in range(2) for count in range(1, 6)]
    found = rows_of(store, entity_frame(asked, [FRAME_TIME] * 10), ["ages:age"])
    assert [row["age"] for row in found] == [1, 2, 3, 4, 5] * 2


def test_a_job_reads_its_sources_anew_each_time_it_is_asked(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "ages", ages_of(1))
    store: FeatureStore = open_store(tmp_path)
    store.apply([user, view("ages", delta("ages"))])
    job = store.get_historical_features(entity_frame(["u0"], [9]), ["ages:age"])
    assert job.to_arrow()["age"].to_pylist() == [1]
    write_deltalake(tmp_path / "ages", ages_of(2), mode="append")
    assert job.to_arrow()["age"].to_pylist() == [2]
