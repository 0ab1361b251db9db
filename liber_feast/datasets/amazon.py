"""Amazon reviews: the UCSD 2018 pair of line-JSON files, and a Parquet pair (interactions.parquet, items.parquet).

Neither states its counts, so only what the files themselves show (a cut-off gzip or Parquet file) is noticed.
Averages and counts over all ratings of an item (`avg_rating`, `n_ratings`) are left out: they know the future.
"""

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as arrow_json
import pyarrow.parquet as pq

from liber_feast.behavior import EVENT_TIME, ITEM, RATING, USER, RatingScale, canonical_id_type
from liber_feast.datasets import amazon_fields as fields
from liber_feast.datasets.data_set import CATEGORIES, PERIOD, TITLE, ParsedSource
from liber_feast.datasets.source_file import YEAR_1995, check_columns, reading, the_file, unix_times
from liber_feast.errors import DataSetError

FILES_PARQUET = ("interactions.parquet", "items.parquet")
METADATA_PREFIX = "meta_"
JSON_SUFFIX = ".json.gz"
BOOK_PROMPT, MUSIC_PROMPT, PRODUCT_PROMPT = "amazon_books", "music", "amazon_products"
SCALE = RatingScale(low=1.0, high=5.0)
FIRST_REVIEW = YEAR_1995
"""The year in which Amazon opened."""
BLOCK_BYTES = 16 << 20
"""A line of the review file may be this long."""
REVIEW_FIELDS = {"reviewerID": USER, "asin": ITEM, "overall": RATING, "unixReviewTime": EVENT_TIME}
REVIEW_SCHEMA = pa.schema(
    [("reviewerID", pa.string()), ("asin", pa.string()), ("overall", pa.float64()), ("unixReviewTime", pa.int64())]
)
_NOTE = "the files do not state how many rows there are, so their number could not be checked"


def find_json_pair(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the review files and the metadata files of `folder` by their names, sorted."""
    files = sorted(path for path in folder.glob(f"*{JSON_SUFFIX}") if path.is_file())
    metadata = [path for path in files if path.name.startswith(METADATA_PREFIX)]
    return [path for path in files if path not in metadata], metadata


def prompt_for(name: str) -> str:
    """Return the prompt template for a set of this name: of books, of music, else of products of any kind."""
    words = set(re.findall(r"[a-z]+", name.lower()))
    if words & {"book", "books", "kindle"}:
        return BOOK_PROMPT
    return MUSIC_PROMPT if words & {"music", "cds", "vinyl"} else PRODUCT_PROMPT


def read_json_pair(folder: Path) -> ParsedSource:
    """Parse the one review file `*.json.gz` and the one metadata file `meta_*.json.gz` of `folder`.

    Raises:
        DataSetError: not exactly one of each, or a file that is cut off, not line-JSON or lacks a field.
    """
    reviews, metadata = find_json_pair(folder)
    for files, what in (
        (reviews, f"review file *{JSON_SUFFIX}"),
        (metadata, f"metadata file {METADATA_PREFIX}*{JSON_SUFFIX}"),
    ):
        if len(files) != 1:
            raise DataSetError(
                f"{folder}: found {len(files)} of the {what}"
                f"{' (' + ', '.join(path.name for path in files) + ')' if files else ''}, expected one."
                " Put one pair into a folder of its own."
            )
    return ParsedSource(
        name=f"amazon-2018-{reviews[0].name.removesuffix(JSON_SUFFIX)}",
        behaviors=_reviews(reviews[0]),
        items=_metadata(metadata[0]),
        users=None,
        scale=SCALE,
        prompt=prompt_for(reviews[0].name),
        files={"behaviors": str(reviews[0]), "items": str(metadata[0]), "users": str(reviews[0])},
        notes=(_NOTE,),
    )


def read_parquet_pair(folder: Path) -> ParsedSource:
    """Parse interactions.parquet (times in milliseconds) and items.parquet."""
    interactions, items = (the_file(folder, name) for name in FILES_PARQUET)
    rows = _parquet(interactions, columns=["user_id", "item_id", "rating", "timestamp"])
    return ParsedSource(
        name=folder.resolve().name,
        behaviors=pa.table(
            {
                USER: _parquet_ids(rows, "user_id", path=interactions),
                ITEM: _parquet_ids(rows, "item_id", path=interactions),
                RATING: rows["rating"],
                EVENT_TIME: _parquet_times(rows, path=interactions),
            }
        ),
        items=_parquet_items(items),
        users=None,
        scale=SCALE,
        prompt=prompt_for(folder.resolve().name),
        files={"behaviors": str(interactions), "items": str(items), "users": str(interactions)},
        notes=(_NOTE,),
    )


def _reviews(path: Path) -> pa.Table:
    with reading(path, expected=f"gzip of one JSON object a line with {', '.join(REVIEW_FIELDS)}"):
        rows = arrow_json.read_json(
            pa.input_stream(str(path), compression="gzip"),
            read_options=arrow_json.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=arrow_json.ParseOptions(explicit_schema=REVIEW_SCHEMA, unexpected_field_behavior="ignore"),
        )
        rows.validate(full=True)
    for name in REVIEW_FIELDS:
        if len(rows) and rows[name].null_count == len(rows):
            raise DataSetError(
                f"{path}: field {name!r} is missing in every line. Reviews need {', '.join(REVIEW_FIELDS)};"
                " get the original file again."
            )
    rows = rows.rename_columns([REVIEW_FIELDS[name] for name in rows.column_names])
    times = unix_times(rows[EVENT_TIME], path=path, earliest=FIRST_REVIEW)
    return rows.set_column(rows.column_names.index(EVENT_TIME), EVENT_TIME, times)


def _metadata(path: Path) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in (ITEM, TITLE, CATEGORIES, PERIOD, "brand", "price")}
    for row in _json_objects(path):
        columns[ITEM].append(row["asin"])
        columns[TITLE].append(fields.text(row.get("title")))
        columns[CATEGORIES].append(fields.categories(row.get("category"), features=row.get("feature")))
        columns[PERIOD].append(fields.decade(row.get("details")))
        columns["brand"].append(fields.brand(row.get("brand")))
        columns["price"].append(fields.price(row.get("price")))
    return _item_table(columns)


def _json_objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a gzipped line-JSON file; the message of a bad line says its number, from 1."""
    expected = "gzip of one JSON object a line with asin, title, category, brand, price"
    is_empty = True
    with reading(path, expected=expected), gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                is_empty = False
                yield _json_object(line, place=f"{path}: line {number}")
    if is_empty:
        raise DataSetError(f"{path}: found no lines, expected one JSON object an item. Get the data set again.")


def _json_object(line: str, *, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON, or a number or a nesting of absurd length
        raise DataSetError(f"{place} is not JSON: {error}. Get the original file again.") from error
    if not isinstance(row, dict) or not fields.is_id(row.get("asin")):
        raise DataSetError(f"{place} is no object with an asin. Get the original file again.")
    return row


def _parquet(path: Path, *, columns: list[str]) -> pa.Table:
    with reading(path, expected=f"a Parquet file with {', '.join(columns)}"):
        check_columns(pq.read_schema(path).names, expected=columns, path=path, others=True)
        rows = pq.read_table(path, columns=columns)
        rows.validate(full=True)
    return rows


def _parquet_times(rows: pa.Table, *, path: Path) -> pa.ChunkedArray | pa.Array:
    times = rows["timestamp"]
    if pa.types.is_timestamp(times.type):
        return times
    if not pa.types.is_integer(times.type):
        raise _wrong_type(rows, "timestamp", path=path, expected="unix milliseconds (int64) or a timestamp")
    with reading(path, expected="unix milliseconds in column 'timestamp'"):
        millis = times.cast(pa.int64())
    return unix_times(millis, path=path, earliest=FIRST_REVIEW, unit="ms")


def _parquet_ids(rows: pa.Table, name: str, *, path: Path) -> pa.ChunkedArray:
    if canonical_id_type(rows[name].type) is None:
        raise _wrong_type(rows, name, path=path, expected="strings or integers, as ids are")
    return rows[name].cast(pa.string())


def _parquet_items(path: Path) -> pa.Table:
    rows = _parquet(path, columns=["item_id", "title", "brand", "category", "price"])
    for name, is_kind, expected in (
        ("title", _is_text, "text"),
        ("brand", _is_text, "text"),
        ("category", _is_text_or_list, "text or a list of texts"),
        ("price", _is_text_or_number, "a number or text"),
    ):
        if not is_kind(rows[name].type):
            raise _wrong_type(rows, name, path=path, expected=expected)
    return _item_table(
        {
            ITEM: _parquet_ids(rows, "item_id", path=path).to_pylist(),
            TITLE: [fields.text(title) for title in rows["title"].to_pylist()],
            CATEGORIES: [fields.categories(category) for category in rows["category"].to_pylist()],
            PERIOD: [None] * len(rows),
            "brand": [fields.brand(brand) for brand in rows["brand"].to_pylist()],
            "price": [fields.price(price) for price in rows["price"].to_pylist()],
        }
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind) or canonical_id_type(kind) == pa.string())


def _is_text_or_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if is_list else kind)


def _is_text_or_number(kind: pa.DataType) -> bool:
    return _is_text(kind) or any(
        is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    )


def _wrong_type(rows: pa.Table, name: str, *, path: Path, expected: str) -> DataSetError:
    return DataSetError(
        f"{path}: column {name!r} has type {rows[name].type}, expected {expected}. Get the original file again."
    )


def _item_table(columns: Mapping[str, list[Any]]) -> pa.Table:
    kinds = {CATEGORIES: pa.list_(pa.string()), "price": pa.float64()}
    return pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()})
