"""A source read in batches: the rows that one read gives, never many at once."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import FileSource

from liber_feast.errors import ConfigError, LiberError
from liber_feast.offline_pull import Pull
from tests.offline_repo import delta, open_store, parquet, second, times, write_parquet

ROWS = {
    "user_id": [f"u{number}" for number in range(500)],
    "item_id": list(range(500)),
    "event_timestamp": times([(number * 37) % 500 for number in range(500)]),
}


def pull_of(root: Path, source: FileSource, **options: Any) -> Pull:
    asked = {"keys": ["user_id"], "features": ["item_id"], "time": "event_timestamp", "created": None}
    return Pull(**{"config": open_store(root).config, "source": source, "start": None, "end": None, **asked, **options})


def of_kind(root: Path, kind: str) -> FileSource:
    """Write the rows in three files; return their source."""
    parts = [pa.table(ROWS).slice(start, 200) for start in (0, 200, 400)]
    for number, part in enumerate(parts):
        if kind == "delta":
            write_deltalake(root / "log", part, mode="append")
        else:
            (root / "log").mkdir(exist_ok=True)
            pq.write_table(part, root / f"log/{number}.parquet", row_group_size=150)
    return delta("log") if kind == "delta" else parquet("log")


@pytest.mark.parametrize("kind", ["parquet", "delta"])
@pytest.mark.parametrize("window", [(None, None), (second(100), second(220))], ids=["all", "window"])
def test_batches_are_the_rows_in_their_order_and_of_bounded_size(tmp_path: Path, kind: str, window: Any) -> None:
    pull = pull_of(tmp_path, of_kind(tmp_path, kind), start=window[0], end=window[1])
    batches = list(pull.batches(size=64))
    assert pa.concat_tables(batches).combine_chunks().equals(pull.rows().combine_chunks())
    assert max(map(len, batches)) <= 64
    assert min(map(len, batches)) > 0


def test_batches_without_a_time_come_when_asked_for_and_a_source_without_keys_gets_the_dummy(tmp_path: Path) -> None:
    source = parquet("log.parquet")
    write_parquet(tmp_path / "log.parquet", {"item_id": [1, 2, 3], "event_timestamp": times([None, 5, 500])})
    pull = pull_of(tmp_path, source, keys=[], start=second(0), end=second(9), with_null_times=True)
    (batch,) = pull.batches()
    assert batch.equals(pull.rows().combine_chunks())
    assert batch["item_id"].to_pylist() == [1, 2]


def test_a_window_without_rows_has_no_batches(tmp_path: Path) -> None:
    assert not list(pull_of(tmp_path, of_kind(tmp_path, "parquet"), start=second(9_000), end=None).batches())


@pytest.mark.parametrize("fault", ["missing", "damaged", "types", "column"])
def test_a_source_that_cannot_be_read_is_refused_as_one_read_refuses_it(tmp_path: Path, fault: str) -> None:
    source = of_kind(tmp_path, "parquet")
    pull = pull_of(tmp_path, parquet("nowhere") if fault == "missing" else source)
    if fault == "types":
        odd = {**ROWS, "item_id": ROWS["user_id"]}
        write_parquet(tmp_path / "log/9.parquet", odd)
    elif fault == "damaged":
        file = tmp_path / "log/2.parquet"
        file.write_bytes(file.read_bytes()[:100] + b"\xff" * 400 + file.read_bytes()[500:])
    elif fault == "column":
        pull = pull_of(tmp_path, source, features=["title"])
    with pytest.raises(LiberError) as expected:
        pull.rows()
    with pytest.raises(type(expected.value)) as caught:
        list(pull.batches(size=64))
    assert caught.value.message == expected.value.message
    assert fault == "missing" or isinstance(caught.value, ConfigError)
