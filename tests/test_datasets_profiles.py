"""The profiles of MovieLens 100K's `u1.base`: chunks as partitions, the newest first, and nothing of `u1.test`."""

import csv
import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pytest

from liber_feast.behavior import ITEM, USER
from liber_feast.datasets.profiles import CHUNK, READ, Profiled, read_profiled
from liber_feast.errors import DataSetError
from liber_feast.ready_texts import read_ready_texts
from tests.shared_data import shared
from tests.test_datasets_movielens import small_100k

NOW = datetime(2026, 1, 1, tzinfo=UTC)
START = 881_250_949
HEADER = ("", "user_id", "user_profile", "intermediate_user_profiles", "profile_changes")


def small(folder: Path, rows: list[tuple[str, ...]]) -> tuple[Path, Path]:
    """Return a data set in which user 1 rated items 1 to 45, the later the higher, and a file of profiles."""
    data = small_100k(folder / "ml-100k")
    items = "".join(f"{item}|Film {item} (1990)|01-Jan-1990||http://x|0|0|1\n" for item in range(1, 46))
    (data / "u.item").write_bytes(items.encode("latin-1"))
    ratings = [f"1\t{item}\t4\t{START + item}\n" for item in range(1, 46)]
    (data / "u1.base").write_bytes("".join([*ratings, f"2\t7\t3\t{START}\n"]).encode())
    (data / "u1.test").write_bytes(f"2\t8\t3\t{START}\n".encode())
    path = folder / "profiles.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return data, path


def row(user_id: str, texts: list[str], *, changes: list[str] | None = None) -> tuple[str, ...]:
    series, moved = (
        {f"chunk_{number}": text for number, text in enumerate(some, 1)} for some in (texts, changes or texts)
    )
    return "0", user_id, texts[-1] if texts else "", repr(series) if texts else "", repr(moved) if texts else ""


def read_small(folder: Path, *rows: tuple[str, ...]) -> Profiled:
    data, path = small(folder, list(rows))
    return read_profiled(data, path, now=NOW, expected=None)


def test_chunk_k_is_the_partition_of_the_kth_ten_newest_ratings(tmp_path: Path) -> None:
    profiled = read_small(
        tmp_path,
        row("1", ["It's a", "b\nb", "c", "d"], changes=["First User profile", "to b", "to c", "to d"]),
        row("2", []),
    )
    assert [line["partition_index"] for line in profiled.lines] == [0, 1, 2, 3]
    assert [line["summary"] for line in profiled.lines] == ["It's a", "b\nb", "c", "d"]
    assert [line["shift"] for line in profiled.lines] == [None, "to b", "to c", "to d"]
    assert [line["item_ids"] for line in profiled.lines] == [
        [str(item) for item in range(newest, newest - CHUNK, -1)] for newest in (45, 35, 25, 15)
    ]
    assert len(profiled.data_set.behaviors) == 46
    assert profiled.test.select([USER, ITEM]).to_pylist() == [{"user_id": "2", "item_id": "8"}]
    profiled.write_lines(tmp_path / "texts.jsonl")
    kept = read_ready_texts(tmp_path / "texts.jsonl", form="plain").by_partition
    assert [(one.user_id, one.summary) for one in kept.values()] == [
        ("1", "It's a"),
        ("1", "b b"),
        ("1", "c"),
        ("1", "d"),
    ]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("1", ["a"]), row("1", ["a"])], "row 2: user '1' has a profile twice"),
        ([row("2", ["a", "b"])], "row 1: user '2' has 2 profiles and 2 changes, and u1.base has 1 chunks of theirs"),
        ([row("9", ["a"])], "row 1: user '9' has 1 profiles and 1 changes, and u1.base has 0 chunks of theirs"),
        ([row("1", ["a", "b"], changes=["a"])], "row 1: user '1' has 2 profiles and 1 changes"),
        ([("0", "1", "a", "{'chunk_2': 'a'}", "{'chunk_2': 'a'}")], "found no texts of chunk_1, chunk_2 and so on"),
        ([("0", "1", "a", "__import__('os')", "{}")], "row 1, intermediate_user_profiles: no dictionary of chunks"),
        ([("0", "1", "a")], "a row has more or fewer values than the header"),
    ],
    ids=["twice", "more than rated", "a foreign user", "a change short", "no first chunk", "code", "a short row"],
)
def test_profiles_that_do_not_fit_the_ratings_are_one_line(
    tmp_path: Path, rows: list[tuple[str, ...]], reason: str
) -> None:
    with pytest.raises(DataSetError, match=reason) as caught:
        read_small(tmp_path, *rows)
    assert "\n" not in caught.value.message


def test_the_real_profiles_are_of_u1_base_and_name_its_films(tmp_path: Path) -> None:
    path = shared("llm-profiles-ml-100k") / "users_with_summary_df.csv.gz"
    profiled = read_profiled(shared("ml-100k"), path, now=NOW)
    assert (len(profiled.data_set.behaviors), len(profiled.test), len(profiled.lines)) == (80_000, 20_000, 1_513)
    assert len({line["user_id"] for line in profiled.lines}) == 459
    assert all(1 <= len(line["item_ids"]) <= CHUNK for line in profiled.lines)
    assert max(line["partition_index"] for line in profiled.lines) == READ // CHUNK - 1
    titles = dict(zip(*(profiled.data_set.items[name].to_pylist() for name in (ITEM, "title")), strict=True))
    held = test_pairs = named = 0
    of_test: dict[str, set[str]] = {}
    for user, item in zip(*(profiled.test[name].to_pylist() for name in (USER, ITEM)), strict=True):
        of_test.setdefault(user, set()).add(item)
    for line in profiled.lines:
        quoted = {
            item for item, title in titles.items() if title and f"'{title.rpartition(' (')[0]}'" in line["summary"]
        }
        named += len(quoted)
        held += len(quoted & set(line["item_ids"]))
        test_pairs += len(quoted & of_test.get(line["user_id"], set()))
    assert held > named / 2  # the others are of the chunks before: a profile is carried on
    assert test_pairs < named / 100
    assert pc.count_distinct(profiled.data_set.behaviors[USER]).as_py() == 943
