"""Parquet files that are written again while they are read: a retrieval has one state of them, or none."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from feast import FeatureStore, FeatureView, Field
from feast.types import Int64

from liber_feast.errors import ConfigError, RetryableError
from liber_feast.offline_read import Snapshot, locate, open_snapshot
from tests.offline_repo import entity_frame, open_store, parquet, rows_of, times, user, write_parquet

EXCHANGED = r"feature view 'second': .*/both\.parquet was rewritten while it was read; ask again\.$"


def exchange(path: Path, value: int, *, row_count: int = 1) -> None:
    """Put another file in the place of `path`, as writers do that leave no half file."""
    beside = path.with_suffix(".tmp")
    columns = {"user_id": ["a"] * row_count, "event_timestamp": times([0] * row_count)}
    write_parquet(beside, {**columns, "x": [value] * row_count, "y": [value] * row_count})
    os.replace(beside, path)


@dataclass(frozen=True, kw_only=True)
class MeanwhileDataset:
    """A data set during whose reads something happens."""

    inner: ds.Dataset
    happens: Callable[[], None]

    @property
    def schema(self) -> pa.Schema:
        return self.inner.schema

    @property
    def files(self) -> list[str]:
        files: list[str] = self.inner.files
        return files

    def to_table(self, **options: Any) -> pa.Table:
        table = self.inner.to_table(**options)
        self.happens()
        return table


def view(name: str, column: str) -> FeatureView:
    schema = [Field(name=column, dtype=Int64)]
    source = parquet("both.parquet", name=name)
    return FeatureView(name=name, entities=[user], ttl=timedelta(0), schema=schema, source=source)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """The views `first` and `second` on one file."""
    exchange(tmp_path / "both.parquet", 1)
    found = open_store(tmp_path)
    found.apply([user, view("first", "x"), view("second", "y")])
    return found


def opened(store: FeatureStore) -> Snapshot:
    second = store.get_feature_view("second")
    return open_snapshot(locate(second.batch_source, config=store.config, view=second))


def test_two_views_on_one_file_never_show_two_states_of_it(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = Snapshot.read, []

    def read_then_exchange(snapshot: Snapshot, *args: Any, **options: Any) -> pa.Table:
        table = read(snapshot, *args, **options)
        reads.append(snapshot.location.owner)
        if len(reads) == 1:
            exchange(tmp_path / "both.parquet", 2)
        return table

    monkeypatch.setattr(Snapshot, "read", read_then_exchange)
    frame, features = entity_frame(["a"], [9]), ["first:x", "second:y"]
    with pytest.raises(RetryableError, match=EXCHANGED) as caught:
        rows_of(store, frame, features)
    assert (reads, "\n" in caught.value.message) == (["feature view 'first'"], False)
    assert [(row["x"], row["y"]) for row in rows_of(store, frame, features)] == [(2, 2)]


def test_a_file_that_is_exchanged_within_a_read_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    snapshot = opened(store)
    meanwhile = MeanwhileDataset(inner=snapshot.dataset, happens=lambda: exchange(tmp_path / "both.parquet", 2))
    with pytest.raises(RetryableError, match=EXCHANGED):
        replace(snapshot, dataset=meanwhile).read(["x"])


def test_a_file_that_was_exchanged_before_the_first_read_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    snapshot = opened(store)
    exchange(tmp_path / "both.parquet", 2)
    with pytest.raises(RetryableError, match=EXCHANGED):
        snapshot.read(["x"])


@pytest.mark.parametrize("row_count", [0, 100, 100_000])
def test_a_file_of_another_size_is_exchanged_and_not_damaged(
    store: FeatureStore, tmp_path: Path, row_count: int
) -> None:
    snapshot = opened(store)
    assert snapshot.read(["x"]).num_rows == 1  # from here on the footer of the old file is known
    exchange(tmp_path / "both.parquet", 2, row_count=row_count)
    with pytest.raises(RetryableError, match=EXCHANGED):
        snapshot.read(["x", "y"])


def test_a_file_that_was_damaged_since_it_was_opened_is_named_when_it_is_opened_again(
    store: FeatureStore, tmp_path: Path
) -> None:
    snapshot = opened(store)
    (tmp_path / "both.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(RetryableError, match=EXCHANGED):
        snapshot.read(["x"])
    with pytest.raises(ConfigError, match=r"feature view 'second': .*both\.parquet cannot be read"):
        opened(store)


def test_one_exchanged_file_of_a_folder_is_enough(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_parquet(tmp_path / f"folder/{name}.parquet", {"x": [1]})
    snapshot = open_snapshot(locate(parquet("folder", name="folder"), config=open_store(tmp_path).config))
    write_parquet(tmp_path / "folder/3.parquet", {"x": [3]})
    assert snapshot.read(["x"])["x"].to_pylist() == [1, 1]  # a further file is no part of what was opened
    write_parquet(tmp_path / "folder/2.parquet", {"x": [2, 2]})
    with pytest.raises(RetryableError, match="data source 'folder': .*/folder was rewritten while it was read"):
        snapshot.read(["x"])
