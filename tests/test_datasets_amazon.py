"""Amazon: the line-JSON pair of 2018 and the Parquet pair."""

import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from liber_feast.datasets import read_data_set
from liber_feast.prompt import prompt_names
from tests.shared_data import shared
from tests.test_datasets import refusal

NOW = datetime(2025, 1, 1, tzinfo=UTC)
REVIEWS = [
    {
        "reviewerID": "A1",
        "asin": "B1",
        "overall": 5.0,
        "unixReviewTime": 1400000000,
        "style": {"Format:": " Hardcover"},
    },
    {"reviewerID": "A1", "asin": "B2", "overall": 2.0, "unixReviewTime": 1400000100, "vote": "3", "image": ["x"]},
    {"reviewerID": "A2", "asin": "B9", "overall": 4.0, "unixReviewTime": 1300000000, "reviewText": "gut ü"},
    {"reviewerID": "A2", "asin": "B9", "overall": 4.0, "unixReviewTime": 1300000000, "reviewText": "again"},
]
METADATA = [
    {
        "asin": "B1",
        "title": "Salt &amp; Sea",
        "category": ["Books", "Literature &amp; Fiction", "Books", "Printed on paper."],
        "feature": ["Printed on paper."],
        "brand": "Visit Amazon's Jo O'Neil Page",
        "price": "$1,005.99",
        "details": {"Publisher:": "Harper; Reprint edition (May 1, 2001)"},
        "rank": "1,000 in Books (",
    },
    {"asin": "B2", "title": "", "category": [], "brand": "", "price": ".a-box-inner{color:#fff}", "rank": ["#5"]},
    {"asin": "B2", "title": "Second row", "category": ["Books"], "brand": "X", "price": "$2.00", "details": {}},
    {"asin": "B3", "title": "var aPageStart = (new Date()).getTime();", "price": 12, "brand": "Y"},
]


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_pair(folder: Path, *, reviews: bytes = lines(REVIEWS), metadata: bytes = lines(METADATA)) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Books_5.json.gz").write_bytes(gzip.compress(reviews))
    (folder / "meta_Books.json.gz").write_bytes(gzip.compress(metadata))
    return folder


def test_a_json_pair_gives_behaviors_and_items_with_brand_and_price(tmp_path: Path) -> None:
    data_set = read_data_set(json_pair(tmp_path / "books"), now=NOW)
    facts = (data_set.name, data_set.prompt, data_set.item_text)
    assert facts == ("amazon-2018-Books_5", "amazon_books", "full")
    assert {name: count for name, count in data_set.counts.items() if count} == {
        "behaviors": 3,
        "users": 2,
        "items": 4,
        "duplicates": 1,
        "items_without_attributes": 1,
        "items_repeated": 1,
        "unsorted": 1,
    }
    bare = {"title": None, "categories": [], "period": None, "brand": None, "price": None}
    assert data_set.items.drop_columns("event_timestamp").to_pylist() == [
        {
            "item_id": "B1",
            "title": "Salt & Sea",
            "categories": ["Books", "Literature & Fiction"],
            "period": "2000s",
            "brand": "Jo O'Neil",
            "price": 1005.99,
        },
        {"item_id": "B2", **bare},
        {"item_id": "B3", **bare, "brand": "Y", "price": 12.0},
        {"item_id": "B9", **bare},
    ]
    assert data_set.behaviors["rating"].to_pylist() == [4.0, 5.0, 2.0]
    assert data_set.behaviors["event_timestamp"][1].as_py() == datetime.fromtimestamp(1400000000, UTC)
    assert data_set.users["profile"].to_pylist() == ["", ""]


def test_crlf_lines_and_empty_lines_of_a_json_pair_are_accepted(tmp_path: Path) -> None:
    plain = read_data_set(json_pair(tmp_path / "books"), now=NOW)
    edited = [text.replace(b"\n", b"\r\n") + b"\r\n" for text in (lines(REVIEWS), lines(METADATA))]
    crlf = read_data_set(json_pair(tmp_path / "crlf", reviews=edited[0], metadata=edited[1]), now=NOW)
    assert crlf.behaviors.equals(plain.behaviors)
    assert crlf.items.equals(plain.items)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("Books_5", "amazon_books"),
        ("Kindle_Store", "amazon_books"),
        ("Digital_Music_5", "music"),
        ("CDs_and_Vinyl", "music"),
        ("Musical_Instruments_5", "amazon_products"),
        ("Electronics", "amazon_products"),
    ],
)
def test_reviews_of_books_and_music_get_their_own_prompt_and_all_others_that_of_products(
    tmp_path: Path, name: str, prompt: str
) -> None:
    folder = json_pair(tmp_path / "set")
    (folder / "Books_5.json.gz").rename(folder / f"{name}.json.gz")
    assert read_data_set(folder, now=NOW).prompt == prompt
    assert read_data_set(parquet_pair(tmp_path / f"amazon-{name}"), now=NOW).prompt == prompt
    assert prompt in prompt_names()


ODD_FIELDS = {
    "tags": ({"title": '<span class="x">Salt</span> &amp; <br>Sea <3'}, ("title", "Salt & Sea <3")),
    "half a character": ({"title": "Sal\ud800t"}, ("title", "Salt")),
    "an absurd entity": ({"title": f"&#{'9' * 5000};"}, ("title", f"&#{'9' * 5000};")),
    "a title that is no text": ({"title": 7}, ("title", None)),
    "tags among categories": ({"category": ["Books", "</span></span>", 5, None]}, ("categories", ["Books"])),
    "a price range": ({"price": "$1.00 - $2.00"}, ("price", None)),
    "an absurd price": ({"price": 10**400}, ("price", None)),
    "an absurd price as text": ({"price": "9" * 400}, ("price", None)),
    "a price that is no number": ({"price": True}, ("price", None)),
    "details without a year": ({"details": {"Publisher:": ["Harper"]}}, ("period", None)),
}


@pytest.mark.parametrize(("given", "expected"), ODD_FIELDS.values(), ids=ODD_FIELDS.keys())
def test_whatever_a_field_of_the_metadata_holds_the_item_is_kept(
    tmp_path: Path, given: dict[str, object], expected: tuple[str, object]
) -> None:
    metadata = (json.dumps({**METADATA[0], **given}) + "\n").encode()
    items = read_data_set(json_pair(tmp_path / "books", metadata=metadata), now=NOW).items.to_pylist()
    assert items[0]["item_id"] == "B1"
    assert items[0][expected[0]] == expected[1]


def changed(index: int, **fields: object) -> bytes:
    rows = [dict(row) for row in REVIEWS]
    rows[index].update(fields)
    return lines([{name: value for name, value in row.items() if value is not ...} for row in rows])


BAD_REVIEWS = {
    "rating is text": (changed(1, overall="5"), "Column(/overall) changed from number to string"),
    "rating outside the scale": (changed(1, overall=0.0), "outside the scale 1 to 5"),
    "rating is null": (changed(1, overall=None), "'rating' is null in 1 rows"),
    "no user in one line": (changed(2, reviewerID=...), "'user_id' is null in 1 rows"),
    "not UTF-8": (lines(REVIEWS).replace(b'"A2"', b'"A\xff"'), "Invalid UTF8"),
    "empty user": (changed(2, reviewerID=""), "empty id"),
    "time in the future": (changed(0, unixReviewTime=1900000000), "a time in the future"),
    "time in milliseconds": (changed(0, unixReviewTime=1400000000000), "impossible times"),
    "another format": (b'{"user": "A1", "item": "B1"}\n', "field 'reviewerID' is missing in every line"),
    "cut-off line": (lines(REVIEWS)[:-30], "JSON parse error"),
    "no JSON": (b"hello\n", "JSON parse error"),
    "no lines": (b"", "Empty JSON file"),
}


@pytest.mark.parametrize(("reviews", "said"), BAD_REVIEWS.values(), ids=BAD_REVIEWS.keys())
def test_a_bad_review_file_is_refused_in_one_line_that_names_it(tmp_path: Path, reviews: bytes, said: str) -> None:
    folder = json_pair(tmp_path / "books", reviews=reviews)
    message = refusal(folder)
    assert said in message
    assert str(folder / "Books_5.json.gz") in message


BAD_METADATA = {
    "no JSON": (lines(METADATA) + b"hello\n", "line 5 is not JSON"),
    "no asin": (lines([{"title": "x"}]), "line 1 is no object with an asin"),
    "asin of another type": (lines([{"asin": 5}]), "line 1 is no object with an asin"),
    "half a character in the asin": (b'{"asin": "\\ud800"}\n', "line 1 is no object with an asin"),
    "absurd number": (b'{"asin": "B1", "price": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
    "absurd nesting": (b'{"asin": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1 is not JSON"),
    "no object": (b"[1]\n", "line 1 is no object with an asin"),
    "not UTF-8": (lines(METADATA).replace(b"Second", b"\xe9"), "utf-8"),
    "no lines": (b"", "found no lines"),
}


@pytest.mark.parametrize(("metadata", "said"), BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_a_bad_metadata_file_is_refused_in_one_line_that_names_it(tmp_path: Path, metadata: bytes, said: str) -> None:
    folder = json_pair(tmp_path / "books", metadata=metadata)
    message = refusal(folder)
    assert said in message
    assert str(folder / "meta_Books.json.gz") in message


@pytest.mark.parametrize("name", ["Books_5.json.gz", "meta_Books.json.gz"])
def test_a_cut_off_damaged_or_empty_gzip_of_the_pair_is_refused(tmp_path: Path, name: str) -> None:
    folder = json_pair(tmp_path / "books")
    whole = (folder / name).read_bytes()
    damaged = [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in (10, len(whole) // 2, len(whole) - 6)]
    for content in (whole[:-1], whole[: len(whole) // 2], *damaged, b"not gzip at all", b""):
        (folder / name).write_bytes(content)
        assert str(folder / name) in refusal(folder)


def test_a_pair_must_be_one_pair(tmp_path: Path) -> None:
    folder = json_pair(tmp_path / "books")
    (folder / "Music.json.gz").write_bytes(gzip.compress(lines(REVIEWS)))
    assert "found 2 of the review file *.json.gz (Books_5.json.gz, Music.json.gz)" in refusal(folder)
    (folder / "Music.json.gz").unlink()
    (folder / "meta_Books.json.gz").unlink()
    assert "found 0 of the metadata file meta_*.json.gz, expected one" in refusal(folder)


INTERACTIONS = pa.table(
    {
        "user_id": ["A1", "A2"],
        "item_id": ["B1", "B2"],
        "rating": [5, 4],
        "timestamp": [1424615980123, 1431982094000],
        "source_category": ["All_Beauty", "All_Beauty"],
    }
)
ITEMS = pa.table(
    {
        "item_id": ["B1", "B2"],
        "title": ["Soap &amp; Co", None],
        "brand": ["X", None],
        "category": ["Health & Personal Care > Soap|Bath", None],
        "price": [1.5, float("nan")],
        "avg_rating": [5.0, 4.0],
    }
)


def parquet_pair(folder: Path, *, interactions: pa.Table = INTERACTIONS, items: pa.Table = ITEMS) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(interactions, folder / "interactions.parquet")
    pq.write_table(items, folder / "items.parquet")
    return folder


def replaced(name: str, values: list[object] | pa.Array, *, table: pa.Table = INTERACTIONS) -> pa.Table:
    column = values if isinstance(values, pa.Array) else pa.array(values)
    return table.set_column(table.column_names.index(name), name, column)


def test_a_parquet_pair_has_milliseconds_and_no_feature_that_knows_the_future(tmp_path: Path) -> None:
    data_set = read_data_set(parquet_pair(tmp_path / "small"), now=NOW)
    times = data_set.behaviors["event_timestamp"].to_pylist()
    assert times[0] == datetime(2015, 2, 22, 14, 39, 40, 123000, tzinfo=UTC)
    assert data_set.items.drop_columns("event_timestamp").to_pylist() == [
        {
            "item_id": "B1",
            "title": "Soap & Co",
            "categories": ["Health & Personal Care", "Soap", "Bath"],
            "period": None,
            "brand": "X",
            "price": 1.5,
        },
        {"item_id": "B2", "title": None, "categories": [], "period": None, "brand": None, "price": None},
    ]


def test_integer_ids_and_timestamp_columns_of_a_parquet_pair_are_accepted(tmp_path: Path) -> None:
    numbered = replaced("user_id", [7, 8]).set_column(
        3, "timestamp", pa.array([datetime(2015, 1, 1), datetime(2016, 1, 1)], pa.timestamp("ns"))
    )
    data_set = read_data_set(parquet_pair(tmp_path / "small", interactions=numbered), now=NOW)
    assert data_set.behaviors["user_id"].to_pylist() == ["7", "8"]
    assert data_set.behaviors["event_timestamp"][0].as_py() == datetime(2015, 1, 1, tzinfo=UTC)


BAD_INTERACTIONS = {
    "missing column": (INTERACTIONS.drop_columns("rating"), "column 'rating' is missing"),
    "seconds": (replaced("timestamp", [1424615980, 1431982094]), "expected unix milliseconds"),
    "future": (replaced("timestamp", [1424615980000, 1900000000000]), "a time in the future"),
    "beyond int64": (replaced("timestamp", pa.array([2**63, 2**63], pa.uint64())), "not in range"),
    "text times": (replaced("timestamp", ["2015", "2016"]), "column 'timestamp' has type string"),
    "text ratings": (replaced("rating", ["5", "4"]), "ratings are numbers"),
    "rating outside the scale": (replaced("rating", [5, 9]), "outside the scale 1 to 5"),
    "null item": (replaced("item_id", ["B1", None]), "'item_id' is null in 1 rows"),
    "float ids": (replaced("user_id", [1.5, 2.5]), "expected strings or integers, as ids are"),
    "not UTF-8": (replaced("user_id", pa.array([b"\xff", b"A"]).view(pa.string())), "Invalid UTF8"),
    "repeated column": (INTERACTIONS.append_column("rating", pa.array([1, 2])), "'rating' is there 2 times"),
    "no rows": (INTERACTIONS.slice(0, 0), "found no behaviors"),
}


@pytest.mark.parametrize(("rows", "said"), BAD_INTERACTIONS.values(), ids=BAD_INTERACTIONS.keys())
def test_bad_interactions_are_refused_in_one_line_that_names_the_file(
    tmp_path: Path, rows: pa.Table, said: str
) -> None:
    folder = parquet_pair(tmp_path / "small", interactions=rows)
    message = refusal(folder)
    assert said in message
    assert str(folder / "interactions.parquet") in message


BAD_ITEMS = {
    "bytes for a title": (("title", [b"x", b"y"]), "column 'title' has type binary, expected text"),
    "numbers for a brand": (("brand", [1, 2]), "column 'brand' has type int64, expected text"),
    "a struct for a category": (("category", [{"a": 1}, None]), "expected text or a list of texts"),
    "a flag for a price": (("price", [True, False]), "column 'price' has type bool, expected a number or text"),
    "float ids": (("item_id", [1.5, 2.5]), "expected strings or integers"),
    "null id": (("item_id", ["B1", None]), "without item_id"),
}


@pytest.mark.parametrize(("column", "said"), BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
def test_bad_items_are_refused_in_one_line_that_names_the_file(
    tmp_path: Path, column: tuple[str, list[object]], said: str
) -> None:
    folder = parquet_pair(tmp_path / "small", items=replaced(*column, table=ITEMS))
    message = refusal(folder)
    assert said in message
    assert str(folder / "items.parquet") in message


def test_decimal_prices_lists_of_categories_and_columns_without_a_value_are_accepted(tmp_path: Path) -> None:
    items = replaced("price", pa.array([Decimal("1.25"), None]), table=ITEMS)
    items = replaced("category", [["Soap", "Bath"], None], table=replaced("brand", pa.nulls(2), table=items))
    first, _ = read_data_set(parquet_pair(tmp_path / "small", items=items), now=NOW).items.to_pylist()
    assert (first["price"], first["categories"], first["brand"]) == (1.25, ["Soap", "Bath"], None)


def test_a_cut_off_parquet_file_and_one_without_a_column_are_refused(tmp_path: Path) -> None:
    folder = parquet_pair(tmp_path / "small")
    path = folder / "items.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert str(path) in refusal(folder)
    pq.write_table(ITEMS.drop_columns("brand"), path)
    assert f"{path}: column 'brand' is missing" in refusal(folder)
    path.unlink()
    assert f"{path}: this file of the data set is missing" in refusal(folder)


def test_amazon_2023_small_has_brand_price_and_category_of_its_items() -> None:
    data_set = read_data_set(shared("amazon-2023-small"), now=NOW)
    assert data_set.items["price"].null_count == 6_676
    assert data_set.items["brand"].null_count == 355
    assert pc.max(pc.list_value_length(data_set.items["categories"])).as_py() == 1
    assert data_set.behaviors["event_timestamp"][0].as_py().year == 2007
    assert "avg_rating" not in data_set.items.column_names
