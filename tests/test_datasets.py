"""What holds for every data set: recognition by files, slices, one-line refusals, and nothing dropped in silence."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from liber_feast.behavior import RatingScale, check_behaviors
from liber_feast.datasets import DataSet, read_data_set
from liber_feast.errors import DataSetError, InvalidBehaviors, LiberError
from tests.shared_data import shared

NOW = datetime(2025, 1, 1, tzinfo=UTC)
RATINGS = "userId,movieId,rating,timestamp\n1,10,4.0,964982703\n1,20,2.5,964982704\n2,10,5.0,964982600\n"
MOVIES = 'movieId,title,genres\n10,"Crow, The (1994)",Action|Thriller\n20,Nameless,(no genres listed)\n'


def csv_release(folder: Path, *, ratings: str = RATINGS, movies: str = MOVIES, readme: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ratings.csv").write_bytes(ratings.encode())
    (folder / "movies.csv").write_bytes(movies.encode())
    if readme is not None:
        (folder / "README.txt").write_text(readme, encoding="utf-8")
    return folder


def refusal(source: Path | str, **keywords: int) -> str:
    with pytest.raises((DataSetError, InvalidBehaviors)) as caught:
        read_data_set(source, now=NOW, **keywords)
    message = caught.value.message
    assert "\n" not in message
    return message


def test_every_item_and_user_of_a_behavior_is_in_its_table_once_and_rows_are_canonical() -> None:
    for source in ("synthetic", *map(shared, ("ml-100k", "ml-latest-small", "amazon-2023-small"))):
        data_set = read_data_set(source, now=NOW)
        again = check_behaviors(data_set.behaviors, scale=data_set.scale, now=NOW)
        assert again.was_sorted
        assert again.duplicate_count == 0
        assert again.table.equals(data_set.behaviors)
        first = data_set.behaviors["event_timestamp"][0].as_py()
        midnight = datetime(first.year, first.month, first.day, tzinfo=UTC)
        for key, table in (("item_id", data_set.items), ("user_id", data_set.users)):
            assert table.schema.field(key).type == pa.string()
            assert len(pc.unique(table[key])) == len(table)
            assert pc.all(pc.is_in(data_set.behaviors[key], table[key].combine_chunks())).as_py()
            assert table.schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
            assert pc.unique(table["event_timestamp"]).to_pylist() == [midnight]
        assert data_set.items.schema.field("categories").type == pa.list_(pa.string())
        assert data_set.items["categories"].null_count == 0
        assert data_set.users["profile"].null_count == 0


@pytest.mark.parametrize(
    ("name", "counts", "prompt", "item_text", "scale"),
    [
        ("ml-100k", (100_000, 943, 1_682), "movielens", "categories", RatingScale(low=1.0, high=5.0)),
        ("ml-latest-small", (100_836, 610, 9_742), "movielens", "categories", RatingScale(low=0.5, high=5.0)),
        ("amazon-2023-small", (25_023, 3_744, 10_000), "amazon_products", "full", RatingScale(low=1.0, high=5.0)),
    ],
)
def test_a_real_data_set_has_the_rows_its_source_states(
    name: str, counts: tuple[int, int, int], prompt: str, item_text: str, scale: RatingScale
) -> None:
    data_set = read_data_set(shared(name), now=NOW)
    assert (len(data_set.behaviors), len(data_set.users), len(data_set.items)) == counts
    assert (data_set.counts["behaviors"], data_set.counts["users"], data_set.counts["items"]) == counts
    assert data_set.counts["duplicates"] == data_set.counts["items_without_attributes"] == 0
    facts = (data_set.name, data_set.prompt, data_set.item_text, data_set.scale)
    assert facts == (name, prompt, item_text, scale)


def test_a_slice_keeps_the_users_whose_first_behaviors_are_the_earliest() -> None:
    whole = read_data_set(shared("ml-latest-small"), now=NOW)
    part = read_data_set(shared("ml-latest-small"), now=NOW, users=50)
    first = pc.unique(whole.behaviors["user_id"]).to_pylist()[:50]
    assert sorted(part.users["user_id"].to_pylist()) == sorted(first)
    kept = pc.is_in(whole.behaviors["user_id"], pa.array(first))
    assert part.behaviors.equals(whole.behaviors.filter(kept))
    assert part.items.equals(whole.items)
    assert part.counts["users"] == 50
    assert part.counts["behaviors"] == len(part.behaviors) < len(whole.behaviors)


@pytest.mark.parametrize("users", [0, -1, 3])
def test_a_slice_of_users_that_are_not_there_is_refused(tmp_path: Path, users: int) -> None:
    assert "has 2 users" in refusal(csv_release(tmp_path / "set"), users=users)


def test_a_number_of_behaviors_is_refused_for_a_folder(tmp_path: Path) -> None:
    assert "synthetic data alone" in refusal(csv_release(tmp_path / "set"), behaviors=10)


def test_items_and_users_are_dated_by_the_midnight_at_or_before_the_first_behavior(tmp_path: Path) -> None:
    ratings = "userId,movieId,rating,timestamp\n1,10,4.0,964915200\n2,10,5.0,964915199\n"
    folder = csv_release(tmp_path / "set", ratings=ratings)
    for users in (1, None):
        data_set = read_data_set(folder, now=NOW, users=users)
        for table in (data_set.items, data_set.users):
            assert set(table["event_timestamp"].to_pylist()) == {datetime(2000, 7, 29, tzinfo=UTC)}
    only = csv_release(tmp_path / "only", ratings=ratings.replace("2,10,5.0,964915199\n", ""))
    midnight = read_data_set(only, now=NOW)
    assert midnight.items["event_timestamp"][0] == midnight.behaviors["event_timestamp"][0]


def test_an_item_without_attributes_is_kept_and_counted(tmp_path: Path) -> None:
    data_set = read_data_set(csv_release(tmp_path / "set", ratings=RATINGS + "2,30,1.0,964982605\n"), now=NOW)
    assert data_set.counts["items_without_attributes"] == 1
    assert len(data_set.behaviors) == 4
    bare = data_set.items.filter(pc.equal(data_set.items["item_id"], "30")).to_pylist()
    assert bare == [
        {
            "item_id": "30",
            "title": None,
            "categories": [],
            "period": None,
            "event_timestamp": datetime(2000, 7, 30, tzinfo=UTC),
        }
    ]


def test_duplicates_are_counted_and_ignored_and_unsorted_rows_are_sorted(tmp_path: Path) -> None:
    data_set = read_data_set(csv_release(tmp_path / "set", ratings=RATINGS + "1,10,4.0,964982703\n"), now=NOW)
    assert (data_set.counts["duplicates"], data_set.counts["unsorted"], len(data_set.behaviors)) == (1, 1, 3)
    assert data_set.behaviors["user_id"].to_pylist() == ["2", "1", "1"]
    ordered = "userId,movieId,rating,timestamp\n2,10,5.0,964982600\n1,10,4.0,964982703\n"
    assert read_data_set(csv_release(tmp_path / "set", ratings=ordered), now=NOW).counts["unsorted"] == 0


def test_repeated_rows_of_an_item_are_counted_and_the_first_is_kept(tmp_path: Path) -> None:
    data_set = read_data_set(csv_release(tmp_path / "set", movies=MOVIES + "10,Other (2001),Drama\n"), now=NOW)
    assert (data_set.counts["items"], data_set.counts["items_repeated"]) == (2, 1)
    assert data_set.items["title"].to_pylist() == ["Crow, The (1994)", "Nameless"]


def test_lf_crlf_and_gzip_give_the_same_tables(tmp_path: Path) -> None:
    plain = read_data_set(csv_release(tmp_path / "set"), now=NOW)
    crlf = csv_release(tmp_path / "crlf", ratings=RATINGS.replace("\n", "\r\n"), movies=MOVIES.replace("\n", "\r\n"))
    zipped = csv_release(tmp_path / "zipped")
    for name in ("ratings.csv", "movies.csv"):
        (zipped / f"{name}.gz").write_bytes(gzip.compress((zipped / name).read_bytes()))
        (zipped / name).unlink()
    for folder in (crlf, zipped):
        assert tables(read_data_set(folder, now=NOW)) == tables(plain)


def tables(data_set: DataSet) -> list[list[dict[str, object]]]:
    return [table.to_pylist() for table in (data_set.behaviors, data_set.items, data_set.users)]


BAD_RATINGS = {
    "missing column": (RATINGS.replace("rating,", "stars,", 1), "'rating' is missing"),
    "unknown column": (RATINGS.replace("timestamp\n", "timestamp,note\n").replace("3\n", "3,\n"), "Expected 5 columns"),
    "extra column": ("userId,movieId,rating,timestamp,note\n1,10,4.0,964982703,x\n", "column 'note' is unknown"),
    "repeated column": ("userId,movieId,rating,timestamp,rating\n1,10,4.0,964982703,4\n", "is there 2 times"),
    "no header": (RATINGS.split("\n", 1)[1], "'userId' is missing"),
    "wrong type": (RATINGS.replace("4.0", "four"), "invalid value 'four'"),
    "id of the wrong type": (RATINGS.replace("2,10", "two,10"), "invalid value 'two'"),
    "null id": (RATINGS.replace("2,10", ",10"), "'user_id' is null in 1 rows"),
    "null rating": (RATINGS.replace("4.0", ""), "'rating' is null in 1 rows"),
    "null time": (RATINGS.replace("964982600", ""), "'event_timestamp' is null in 1 rows"),
    "rating outside the scale": (RATINGS.replace("4.0", "6.0"), "outside the scale 0.5 to 5"),
    "far future": (RATINGS.replace("964982600", "1900000000"), "a time in the future"),
    "milliseconds": (RATINGS.replace("964982600", "964982600000"), "impossible times"),
    "cut-off time": (RATINGS.replace("964982600", "96498"), "impossible times"),
    "cut-off line": (RATINGS[:-12], "Expected 4 columns, got 3"),
    "empty": ("", "empty file"),
    "header alone": (RATINGS.split("\n", maxsplit=1)[0] + "\n", "no rows"),
}


@pytest.mark.parametrize(("text", "said"), BAD_RATINGS.values(), ids=BAD_RATINGS.keys())
def test_a_bad_ratings_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(csv_release(tmp_path / "set", ratings=text))
    assert said in message
    assert str(tmp_path / "set" / "ratings.csv") in message


BAD_MOVIES = {
    "missing column": ("movieId,title\n10,Crow\n", "'genres' is missing"),
    "null id": (MOVIES + ",Lost (1999),Drama\n", "without item_id"),
    "not UTF-8": (MOVIES.replace("Crow", "Cr\udcf6w"), "UTF8"),
    "empty": ("", "empty file"),
}


@pytest.mark.parametrize(("text", "said"), BAD_MOVIES.values(), ids=BAD_MOVIES.keys())
def test_a_bad_movies_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, said: str) -> None:
    folder = csv_release(tmp_path / "set")
    (folder / "movies.csv").write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(folder)
    assert said in message
    assert str(folder / "movies.csv") in message


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_cut_off_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    folder = csv_release(tmp_path / "set")
    (folder / "ratings.csv.gz").write_bytes(gzip.compress((folder / "ratings.csv").read_bytes())[:-cut])
    (folder / "ratings.csv").unlink()
    message = refusal(folder)
    assert "Truncated compressed stream" in message
    assert "ratings.csv.gz" in message


def test_a_long_line_of_garbage_still_gives_a_short_message(tmp_path: Path) -> None:
    folder = csv_release(tmp_path / "set", ratings=RATINGS + "x" * 10_000 + ",1,1.0,964982605\n")
    assert len(refusal(folder)) < 1_000


def test_a_missing_folder_a_file_and_a_folder_that_is_no_data_set_are_told_apart(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "is a file, not a folder" in refusal(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    message = refusal(tmp_path / "folder")
    for known in ("u.data", "ratings.dat", "ratings.csv", "interactions.parquet", "meta_*.json.gz", "'synthetic'"):
        assert known in message


@pytest.mark.parametrize("name", ["~nobody-of-this-name/set", "x" * 5000], ids=["home of nobody", "absurd name"])
def test_a_folder_that_cannot_be_looked_into_is_refused(name: str) -> None:
    assert "cannot be looked into" in refusal(name)


def test_a_data_set_that_lacks_one_of_its_files_is_refused_naming_the_file(tmp_path: Path) -> None:
    folder = csv_release(tmp_path / "set")
    (folder / "movies.csv").unlink()
    assert f"{folder / 'movies.csv'}: this file of the data set is missing" in refusal(folder)


def test_refusals_are_errors_of_ours_that_end_a_command_with_code_one(tmp_path: Path) -> None:
    with pytest.raises(LiberError) as caught:
        read_data_set(tmp_path / "nowhere")
    assert caught.value.exit_code == 1
