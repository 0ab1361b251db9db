"""MovieLens: the quirks of its three formats, and that its published counts are held."""

import logging
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pytest

from liber_feast.datasets import DataSet, ExpectedCounts, read_data_set
from liber_feast.datasets.data_set import make_data_set
from liber_feast.datasets.movielens import ML_1M, ML_100K, read_1m, read_100k
from liber_feast.errors import DataSetError
from tests.shared_data import shared
from tests.test_datasets import csv_release, refusal

NOW = datetime(2025, 1, 1, tzinfo=UTC)


def small_1m(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ratings.dat").write_bytes(b"1::10::5::978300760\n1::20::3::978302109\n2::10::4::978298413\n")
    movies = "10::Misérables, Les (1995)::Drama|Musical\n20::Star: The Movie (1968)::Drama\n30::Unseen (1999)::Comedy\n"
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    (folder / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::02460\n")
    return folder


def small_100k(folder: Path) -> Path:
    folder.mkdir()
    (folder / "u.data").write_bytes(b"1\t10\t5\t881250949\n1\t20\t3\t881250950\n2\t10\t4\t881250951\n")
    items = '10|Éxit "Only" (1995)|01-Jan-1995||http://x|0|1|1\n20|unknown||||1|0|0\n'
    items += "30|Late Show, The|04-Feb-1971|||0|0|1\n"
    (folder / "u.item").write_bytes(items.encode("latin-1"))
    (folder / "u.user").write_bytes(b"1|24|M|technician|08571\n2|61|F|other|T8H1N\n")
    (folder / "u.genre").write_bytes(b"unknown|0\nAction|1\nDrama|2\n\n")
    return folder


def read_small(folder: Path, **keywords: ExpectedCounts | None) -> DataSet:
    read = read_1m if (folder / "ratings.dat").exists() else read_100k
    return make_data_set(read(folder, **(keywords or {"expected": None})), now=NOW)


def test_1m_is_parsed_with_its_two_colon_delimiter_and_latin_1_titles(tmp_path: Path) -> None:
    data_set = read_small(small_1m(tmp_path / "ml-1m"))
    assert data_set.items.drop_columns("event_timestamp").to_pylist() == [
        {"item_id": "10", "title": "Misérables, Les (1995)", "categories": ["Drama", "Musical"], "period": "1990s"},
        {"item_id": "20", "title": "Star: The Movie (1968)", "categories": ["Drama"], "period": "1960s"},
        {"item_id": "30", "title": "Unseen (1999)", "categories": ["Comedy"], "period": "1990s"},
    ]
    first, second = data_set.users.drop_columns("event_timestamp").to_pylist()
    assert first == {
        "user_id": "1",
        "profile": "under 18, female, K-12 student",
        "age_group": "under 18",
        "gender": "female",
        "occupation": "K-12 student",
        "zip_prefix": "4",
    }
    assert second["profile"] == "56 or older, male, self-employed"
    assert data_set.behaviors["rating"].to_pylist() == [4.0, 5.0, 3.0]
    assert data_set.behaviors["event_timestamp"][0].as_py() == datetime.fromtimestamp(978298413, UTC)


def test_100k_is_parsed_with_genre_flags_dates_and_an_empty_last_line(tmp_path: Path) -> None:
    data_set = read_small(small_100k(tmp_path / "ml-100k"))
    assert data_set.items.drop_columns("event_timestamp").to_pylist() == [
        {"item_id": "10", "title": 'Éxit "Only" (1995)', "categories": ["Action", "Drama"], "period": "1990s"},
        {"item_id": "20", "title": "unknown", "categories": [], "period": None},
        {"item_id": "30", "title": "Late Show, The", "categories": ["Drama"], "period": "1970s"},
    ]
    assert data_set.users["profile"].to_pylist() == ["24 years old, male, technician", "61 years old, female, other"]
    assert data_set.users["age_group"].to_pylist() == ["18-24", "56 or older"]
    assert data_set.users["zip_prefix"].to_pylist() == ["0", "T"]


@pytest.mark.parametrize("make", [small_1m, small_100k], ids=["1M", "100K"])
def test_crlf_gives_the_same_tables(tmp_path: Path, make: object) -> None:
    assert callable(make)
    plain, crlf = make(tmp_path / "lf"), make(tmp_path / "crlf")
    for path in crlf.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    expected, found = read_small(plain), read_small(crlf)
    for name in ("behaviors", "items", "users"):
        assert getattr(found, name).equals(getattr(expected, name))


def test_a_fixture_of_1m_fails_the_published_count(tmp_path: Path) -> None:
    message = refusal(small_1m(tmp_path / "ml-1m"))
    assert "ratings.dat: found 3 rows, expected 1,000,209: the file is truncated or edited" in message


def test_1m_counts_are_those_published() -> None:
    assert ExpectedCounts(behaviors=1_000_209, users=6_040, items=3_883) == ML_1M
    assert ExpectedCounts(behaviors=100_000, users=943, items=1_682) == ML_100K


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (ExpectedCounts(behaviors=4, users=2, items=3), "ratings.dat: found 3 rows, expected 4: the file is truncated"),
        (ExpectedCounts(behaviors=2, users=2, items=3), "ratings.dat: found 3 rows, expected 2: the file is edited"),
        (ExpectedCounts(behaviors=3, users=3, items=3), "ratings.dat: found 2 users with behaviors, expected 3"),
        (ExpectedCounts(behaviors=3, users=2, items=4), "movies.dat: found 3 items, expected 4"),
    ],
    ids=["rows missing", "rows added", "users", "movies"],
)
def test_a_count_other_than_the_published_one_is_refused(tmp_path: Path, expected: ExpectedCounts, said: str) -> None:
    with pytest.raises(DataSetError) as caught:
        read_small(small_1m(tmp_path / "ml-1m"), expected=expected)
    assert said in caught.value.message


def test_counts_that_are_met_are_accepted(tmp_path: Path) -> None:
    data_set = read_small(small_1m(tmp_path / "ml-1m"), expected=ExpectedCounts(behaviors=3, users=2, items=3))
    assert data_set.counts["count_checked"] == 1


EDITS = {
    "a header line": ("u.data", lambda data: b"user\titem\trating\ttime\n" + data, "invalid value 'user'"),
    "an added user 0": ("u.data", lambda data: data + b"0\t50\t5\t881250949\n", "found user '0', who is not in"),
    "a missing line": ("u.data", lambda data: data[data.index(b"\n") + 1 :], "found 99,999 rows, expected 100,000"),
    "a repeated line": ("u.data", lambda data: data + data[: data.index(b"\n") + 1], "found 100,001 rows"),
    "a cut-off end": ("u.data", lambda data: data[:-3], "impossible times"),
    "the first half": ("u.data", lambda data: data[: len(data) // 2], "u.data"),
    "no bytes": ("u.data", lambda data: b"", "found an empty file"),
    "a missing movie": ("u.item", lambda data: data[data.index(b"\n") + 1 :], "found 1,681 items, expected 1,682"),
    "a cut-off movie": ("u.item", lambda data: data[:-20], "Expected 24 columns"),
    "a missing user": ("u.user", lambda data: data[data.index(b"\n") + 1 :], "found user '1', who is not in"),
    "a missing genre": ("u.genre", lambda data: data[data.index(b"\n") + 1 :], "genre numbers"),
    "one genre less": ("u.genre", lambda data: data[: data.index(b"Western")], "Expected 23 columns"),
}


@pytest.mark.parametrize(("name", "edit", "said"), EDITS.values(), ids=EDITS.keys())
def test_an_edited_100k_is_refused(tmp_path: Path, name: str, edit: object, said: str) -> None:
    assert callable(edit)
    source, folder = shared("ml-100k"), tmp_path / "ml-100k"
    folder.mkdir()
    for file in ("u.data", "u.item", "u.user", "u.genre"):
        shutil.copyfile(source / file, folder / file)
    (folder / name).write_bytes(edit((source / name).read_bytes()))
    message = refusal(folder)
    assert said in message
    assert "get" in message.lower()


def test_100k_with_crlf_is_the_same_data_set(tmp_path: Path) -> None:
    source, folder = shared("ml-100k"), tmp_path / "ml-100k"
    folder.mkdir()
    for file in ("u.data", "u.item", "u.user", "u.genre"):
        (folder / file).write_bytes((source / file).read_bytes().replace(b"\n", b"\r\n"))
    expected, found = read_data_set(source, now=NOW), read_data_set(folder, now=NOW)
    for name in ("behaviors", "items", "users"):
        assert getattr(found, name).equals(getattr(expected, name))


def test_100k_has_its_non_ascii_titles_and_item_267_without_dates() -> None:
    items = read_data_set(shared("ml-100k"), now=NOW).items
    titles = items["title"].to_pylist()
    assert sum(not title.isascii() for title in titles) == 9
    assert {"Misérables, Les (1995)", "Á köldum klaka (Cold Fever) (1994)"} <= set(titles)
    unknown = items.filter(pc.equal(items["item_id"], "267")).to_pylist()[0]
    assert (unknown["title"], unknown["categories"], unknown["period"]) == ("unknown", [], None)


def test_latest_small_has_its_quoted_and_yearless_titles() -> None:
    items = read_data_set(shared("ml-latest-small"), now=NOW).items
    by_title = {row["title"]: row for row in items.to_pylist()}
    assert by_title["City of Lost Children, The (Cité des enfants perdus, La) (1995)"]["period"] == "1990s"
    assert by_title["Death Note: Desu nôto (2006–2007)"]["period"] == "2000s"
    assert by_title["Babylon 5"]["period"] is None
    assert by_title["Ben-hur (2016)"]["categories"] == []


README = "It contains {} ratings and 7 tag applications across {} movies. These data were created by\n{} users between"


def test_a_release_is_held_to_the_counts_in_its_readme(tmp_path: Path) -> None:
    folder = csv_release(tmp_path / "set", readme=README.format(3, 2, 2))
    assert read_data_set(folder, now=NOW).counts["count_checked"] == 1
    for stated, said in (
        (("1,000", 2, 2), "ratings.csv: found 3 rows, expected 1,000"),
        ((3, 5, 2), "movies.csv: found 2 items, expected 5"),
        ((3, 2, 1), "ratings.csv: found 2 users with behaviors, expected 1"),
    ):
        assert said in refusal(csv_release(folder, readme=README.format(*stated)))


@pytest.mark.parametrize("readme", [None, "My own ratings.\n"], ids=["no README", "a README without counts"])
def test_a_release_without_stated_counts_is_taken_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, readme: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        data_set = read_data_set(csv_release(tmp_path / "mine", readme=readme), now=NOW)
    assert data_set.counts["count_checked"] == 0
    assert data_set.name == "mine"
    assert "could not be checked" in caplog.text


def test_numbers_in_a_readme_that_are_none_state_no_counts(tmp_path: Path) -> None:
    for number in (",", "9" * 5000):
        folder = csv_release(tmp_path / "set", readme=README.format(number, number, number))
        assert read_data_set(folder, now=NOW).counts["count_checked"] == 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("u.genre", b"unknown|0\nDrama|1\nDrama|2\n", "found a genre twice in unknown, Drama, Drama"),
        ("u.item", b"10|A (1995)|||x|0|1|0\n20|B (1995)|||x|0|2|0\n", "flag other than 0 and 1 in row 1"),
        ("u.item", b"10|A (1995)|||x|0||0\n", "flag other than 0 and 1 in row 0"),
    ],
    ids=["repeated genre", "unknown flag", "missing flag"],
)
def test_genres_and_flags_of_100k_that_cannot_be_are_refused(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    folder = small_100k(tmp_path / "ml-100k")
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert said in message
    assert str(folder / name) in message


def test_an_unknown_occupation_of_1m_is_refused(tmp_path: Path) -> None:
    folder = small_1m(tmp_path / "ml-1m")
    (folder / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::21::02460\n")
    assert "found occupation 21 in row 1, expected 0 to 20" in refusal(folder)


def test_a_user_without_attributes_is_kept_with_an_empty_profile_where_users_may_be_missing(tmp_path: Path) -> None:
    folder = small_1m(tmp_path / "ml-1m")
    (folder / "users.dat").write_bytes(b"1::F::1::10::48067\n")
    data_set = make_data_set(replace(read_1m(folder, expected=None), users_are_closed=False), now=NOW)
    assert data_set.counts["users_without_attributes"] == 1
    bare = data_set.users.filter(pc.equal(data_set.users["user_id"], "2")).to_pylist()[0]
    assert (bare["profile"], bare["age_group"]) == ("", None)
