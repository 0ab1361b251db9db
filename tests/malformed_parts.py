"""Frames that producers push by mistake or on purpose: every kind of odd value, column and shape, drawn by a seed.

A frame is a valid push that was changed in some places. What is drawn depends on the random source alone.
"""

import datetime as dt
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa

USER, ITEM, RATING, TIME, ID = "user_id", "item_id", "rating", "event_timestamp", "behavior_id"
COLUMNS = (USER, ITEM, RATING, TIME)
EPOCH_OF_PUSHES = datetime(2023, 6, 1, tzinfo=UTC)
ROW_COUNTS = (1, 1, 2, 2, 2, 3, 3, 5)
HUGE = "x" * 100_000

Change = Callable[[pd.DataFrame, random.Random], pd.DataFrame]

TEXTS = (
    "",
    " ",
    "\t",
    "\n",
    "a\nb\r\nc",
    "a\x00b",
    "\x00",
    "\x00u1",
    "u1\x00",
    "\x1f\x7f\x80\x9f",
    "\ud800",
    "a\udfffb",
    "\udcff",
    "\ud83d\ude00",  # a pair of surrogates, written as two
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea",
    "e\u0301",
    "\u00e9",
    "\u0301\u0302\u0303" * 40,
    "\u202eu1\u202c",
    "\u2066u1\u2069",
    "\u0645\u0633\u062a\u062e\u062f\u0645",
    "\u05de\u05e9\u05ea\u05de\u05e9",
    "\u7528\u6237",
    "\ufeffu1",
    "u\u200b1",
    "\u00adu1",
    "\u2028u1\u2029",
    "\uffff\ufffe",
    "\U0010ffff",
    "\ufb01",
    "\u0130\u0131",
    "u1",
    "U1",
    " u1",
    "u1 ",
    "'; DROP TABLE behaviors; --",
    '"; DELETE FROM users; --',
    "u1' OR '1'='1",
    "\\'; SELECT pg_sleep(9); --",
    "%s %(x)s ? :x $1 {0} {x} \\",
    "%n%d%x",
    "../../../etc/passwd",
    "NULL",
    "nan",
    "None",
    "true",
    "1",
    "01",
    "1e5",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "${jndi:ldap://x}",
    "user_id",
    "__index_level_0__",
    "x" * 512,
    "\U0001f600" * 512,
    "x" * 513,
    "\U0001f600" * 513,
    HUGE,
    "\n" * 5_000,
)
TIME_TEXTS = (
    "2023-06-01T00:00:00Z",
    "2023-06-01T00:00:00",
    "2023-06-01",
    "2023-06",
    "20230601T000000Z",
    "2023-06-01T00:00:00.123456789Z",
    "2023-06-01T00:00:00+05:30",
    "2023-06-01T24:00:00Z",
    "2023-06-01T23:59:60Z",
    "2023-02-30T00:00:00Z",
    "2023-W22-4",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "0000-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z",
    "1677-09-21T00:12:43Z",
    "2262-04-11T23:47:17Z",
    "9999-12-31T23:59:59Z",
    "10000-01-01T00:00:00Z",
    "1685577600",
    "now",
    "today",
    "NaT",
    "yesterday",
    "06/01/2023",
    "\u0662\u0660\u0662\u0663-06-01",
    "2023-06-01T00:00:00 Mars/Olympus",
    *TEXTS,
)


class Text(str):
    """A text of another class."""


class Surprise:
    """An object whose every look at it fails."""

    def __str__(self) -> str:
        raise RuntimeError("a surprise")

    __repr__ = __str__


NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    5,
    4.0,
    0.5,
    5.000001,
    -0.0,
    5e-324,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    2**64,
    10**30,
    10**400,
    True,
    False,
    Decimal("4.25"),
    Decimal("1e-60"),
    Decimal("NaN"),
    Decimal("Infinity"),
    Decimal("1e400"),
    Fraction(7, 2),
    1 + 2j,
    np.float16(4),
    np.float32(3.5),
    np.longdouble(3.5),
    np.int8(4),
    np.uint64(2**64 - 1),
    np.bool_(True),
)
MOMENTS: tuple[Any, ...] = (
    datetime(1, 1, 1),  # noqa: DTZ001
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo")),
    datetime(9999, 12, 31, 23, 59, 59, 999999),  # noqa: DTZ001
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=ZoneInfo("America/New_York")),
    datetime(2023, 6, 1, tzinfo=dt.timezone(timedelta(hours=5, minutes=30, seconds=17))),
    datetime(2023, 10, 29, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2023, 3, 26, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),  # never was
    dt.date(2023, 6, 1),
    dt.date(1, 1, 1),
    dt.time(12),
    timedelta(days=1),
    pd.Timestamp("2023-06-01", tz="UTC"),
    pd.Timestamp("2023-06-01"),
    pd.Timestamp.min,
    pd.Timestamp.max,
    pd.NaT,
    pd.Period("2023-01"),
    pd.Timedelta("1D"),
    np.datetime64("2023-06-01"),
    np.datetime64("2023-06-01T00:00:00.000000001"),
    np.datetime64("NaT"),
    np.datetime64(2**62, "s"),
    np.timedelta64(1, "D"),
)
THINGS: tuple[Any, ...] = (
    None,
    pd.NA,
    ...,
    NotImplemented,
    b"",
    b"u1",
    b"\xff\xfe",
    bytearray(b"u1"),
    memoryview(b"u1"),
    [],
    [1, 2],
    ["u1"],
    (),
    ("u1", 1),
    {},
    {"a": 1},
    {"a": {"b": [None]}},
    set(),
    frozenset({1}),
    range(3),
    np.array(4.0),
    np.zeros((2, 2)),
    np.array(["a", None], object),
    pd.Series([1, 2]),
    pd.DataFrame({"a": [1]}),
    pd.Interval(0, 1),
    pd.Categorical(["a"]),
    pa.scalar("u1"),
    uuid.UUID(int=1),
    Path("u1"),
    Text("u1"),
    np.str_("u1"),
    object(),
    Surprise(),
    int,
    len,
    ValueError("u1"),
)
VALUES: Mapping[str, Sequence[Any]] = {
    USER: (*TEXTS, *TEXTS, *NUMBERS, *MOMENTS, *THINGS),
    ITEM: (*TEXTS, *TEXTS, *NUMBERS, *MOMENTS, *THINGS),
    ID: (*TEXTS, *TEXTS, *NUMBERS, *MOMENTS, *THINGS),
    RATING: (*NUMBERS, *NUMBERS, "4", "", "nan", "4,5", *MOMENTS, *THINGS),
    TIME: (*TIME_TEXTS, *MOMENTS, *MOMENTS, *NUMBERS, *THINGS),
}
"""Odd values by the column where somebody may put them, those of its own kind more often."""


def valid(source: random.Random, *, with_ids: bool = False) -> pd.DataFrame:
    """Return a push that is taken: a few rows of few users."""
    count = source.choice(ROW_COUNTS)
    times = [EPOCH_OF_PUSHES + timedelta(seconds=source.randrange(10**7), microseconds=row) for row in range(count)]
    rows = pd.DataFrame(
        {
            USER: [f"u{source.randrange(30)}" for _ in range(count)],
            ITEM: [f"i{source.randrange(50)}" for _ in range(count)],
            RATING: [source.choice((0.5, 2.0, 3.5, 4.0, 5.0)) for _ in range(count)],
            TIME: pd.Series(times, dtype="datetime64[us, UTC]"),
        }
    )
    return rows.assign(**{ID: [f"b{source.randrange(10**9)}" for _ in range(count)]}) if with_ids else rows


def malformed(source: random.Random, *, with_ids: bool = False) -> pd.DataFrame:
    """Return a push that was changed in up to three places, most often in one or two."""
    rows = valid(source, with_ids=with_ids)
    for _ in range(source.choice((0, 1, 1, 1, 2, 2, 2, 3))):
        change = source.choices([one for one, _ in CHANGES], [weight for _, weight in CHANGES])[0]
        with suppress(Exception):  # what pandas cannot make of a frame that was changed before stays as it was
            rows = change(rows, source)
    return rows


def _column(rows: pd.DataFrame, source: random.Random) -> Any:
    return source.choice(list(rows.columns)) if len(rows.columns) else USER


def _kind(name: Any) -> str:
    return name if name in VALUES else USER


def odd_cell(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    """Put an odd value into one cell of a column, or into some."""
    name = _column(rows, source)
    if not len(rows) or isinstance(rows.get(name), pd.DataFrame):
        return rows
    values = np.empty(len(rows), object)
    values[:] = list(rows[name]) if name in rows else None
    for _ in range(source.choice((1, 1, 1, 2))):
        values[source.randrange(len(rows))] = source.choice(VALUES[_kind(name)])
    return _with(rows, name, pd.Series(values, dtype=object, index=rows.index))


def odd_column(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    """Make a whole column of one odd value."""
    name = _column(rows, source)
    values = np.empty(len(rows), object)
    for place in range(len(rows)):
        values[place] = None
    value = source.choice(VALUES[_kind(name)])
    for place in range(len(rows)):
        values[place] = value
    return _with(rows, name, pd.Series(values, dtype=object, index=rows.index))


def odd_type(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    """Give a column another type, with the values that it has or, where it cannot hold those, with others."""
    name = _column(rows, source)
    if isinstance(rows.get(name), pd.DataFrame):
        return rows
    kind = source.choice(TYPES)
    try:
        made = rows[name].astype(kind)
    except Exception:  # noqa: BLE001  # whatever pandas says of a type that does not fit
        made = pd.Series([None] * len(rows), index=rows.index)
        for value in (1, 4.0, "a", pd.Timestamp(EPOCH_OF_PUSHES), b"a", True):
            try:
                made = pd.Series([value] * len(rows), dtype=kind, index=rows.index)
                break
            except Exception:  # noqa: BLE001
                continue
    return _with(rows, name, made)


TYPES: tuple[Any, ...] = (
    "category",
    "string",
    "string[pyarrow]",
    "bool",
    "boolean",
    "Int64",
    "UInt64",
    "Float32",
    "int8",
    "uint64",
    "float16",
    "float32",
    "complex128",
    "datetime64[s]",
    "datetime64[ms, UTC]",
    "datetime64[us, Asia/Tokyo]",
    "datetime64[ns]",
    "datetime64[ns, UTC]",
    "timedelta64[ns]",
    "period[D]",
    "interval[int64]",
    "Sparse[float64]",
    "Sparse[int64]",
    "S8",
    "U8",
    object,
    pd.ArrowDtype(pa.string()),
    pd.ArrowDtype(pa.large_string()),
    pd.ArrowDtype(pa.string_view()),
    pd.ArrowDtype(pa.binary()),
    pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())),
    pd.ArrowDtype(pa.list_(pa.string())),
    pd.ArrowDtype(pa.struct([("a", pa.int64())])),
    pd.ArrowDtype(pa.map_(pa.string(), pa.int64())),
    pd.ArrowDtype(pa.decimal128(10, 2)),
    pd.ArrowDtype(pa.decimal256(60, 2)),
    pd.ArrowDtype(pa.float16()),
    pd.ArrowDtype(pa.uint64()),
    pd.ArrowDtype(pa.bool_()),
    pd.ArrowDtype(pa.null()),
    pd.ArrowDtype(pa.date32()),
    pd.ArrowDtype(pa.time64("ns")),
    pd.ArrowDtype(pa.duration("us")),
    pd.ArrowDtype(pa.timestamp("s")),
    pd.ArrowDtype(pa.timestamp("ns", "UTC")),
    pd.ArrowDtype(pa.timestamp("us", "+05:30")),
)


def odd_times(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    """Write times in another way, or far away."""
    count = len(rows)
    ways: tuple[Callable[[], Any], ...] = (
        lambda: [source.choice(TIME_TEXTS[:8]) for _ in range(count)],
        lambda: [source.choice(TIME_TEXTS) for _ in range(count)],
        lambda: [source.choice(MOMENTS[:8]) for _ in range(count)],
        lambda: [source.randrange(-(10**10), 10**10) for _ in range(count)],
        lambda: np.array([source.randrange(-(2**63) + 1, 2**63) for _ in range(count)], "datetime64[us]"),
        lambda: np.array([source.randrange(-(10**10), 10**10) for _ in range(count)], "datetime64[s]"),
        lambda: np.array([-62_135_596_800 + source.randrange(3) for _ in range(count)], "datetime64[s]"),
        lambda: np.array([source.randrange(2**62, 2**63) for _ in range(count)], "datetime64[s]"),
        lambda: pd.Series([pd.NaT] * count),
        lambda: pd.to_datetime([f"2023-01-0{source.randrange(1, 9)}" for _ in range(count)], utc=True),
        lambda: [pd.Timestamp("2023-01-01", tz=source.choice(("Asia/Tokyo", "UTC", None))) for _ in range(count)],
    )
    values = source.choice(ways)()
    return _with(rows, TIME, pd.Series(values, index=rows.index) if count else pd.Series([], dtype=object))


def odd_shape(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    """Give the frame another shape: no rows, columns too many, too few, twice or by other names, another index."""
    return source.choice(SHAPES)(rows, source)


def _with(rows: pd.DataFrame, name: Any, values: Any) -> pd.DataFrame:
    changed = rows.copy(deep=False)
    changed[name] = values
    return changed


def _renamed(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    names = ("USER_ID", " user_id", "user_id ", "", HUGE, 7, None, float("nan"), ("a", "b"), "a\x00b", *TEXTS[36:40])
    return rows.rename(columns={_column(rows, source): source.choice(names)})


def _renamed_index(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    name = _column(rows, source)
    return rows.set_index(name, drop=source.random() < 0.5) if isinstance(name, str) else rows


def _two_levels(rows: pd.DataFrame, _source: random.Random) -> pd.DataFrame:
    return rows.set_axis(pd.MultiIndex.from_product([["a"], list(rows.columns)]), axis=1)


def _shuffled(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    names = list(rows.columns)
    source.shuffle(names)
    return rows[names] if len(set(map(str, names))) == len(names) else rows


def _repeated(rows: pd.DataFrame, source: random.Random) -> pd.DataFrame:
    return pd.concat([rows] * source.choice((2, 3)), ignore_index=source.random() < 0.5)


SHAPES: tuple[Change, ...] = (
    lambda rows, _: rows.iloc[:0],
    lambda rows, _: rows[[]],
    lambda _, __: pd.DataFrame(),
    lambda rows, source: rows.drop(columns=[_column(rows, source)], errors="ignore"),
    lambda rows, source: _with(rows, source.choice(("note", ID, "__index_level_0__", 0, "created_timestamp")), "x"),
    lambda rows, source: (
        pd.concat([rows, rows.iloc[:, [source.randrange(len(rows.columns))]]], axis=1) if len(rows.columns) else rows
    ),
    _renamed,
    _renamed_index,
    _two_levels,
    _shuffled,
    _repeated,
    _repeated,
    lambda rows, _: rows.set_index(pd.MultiIndex.from_arrays([range(len(rows)), range(len(rows))])),
    lambda rows, _: rows.set_index(pd.Index([float("nan")] * len(rows), name="user_id")),
    lambda rows, _: rows.iloc[::-1],
    lambda rows, _: rows.T,
    lambda rows, _: rows.astype(object),
)

CHANGES: tuple[tuple[Change, int], ...] = (
    (odd_cell, 5),
    (odd_column, 3),
    (odd_type, 3),
    (odd_times, 2),
    (odd_shape, 3),
)
"""Each with its weight."""
