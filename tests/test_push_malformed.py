"""Pushes of anything: refused by a named error, or valid; taken as a whole or not at all, the memory unharmed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from feast import FeatureStore
from feast.data_source import PushMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liber_feast.errors import InvalidBehaviors
from liber_feast.memory.schema import behaviors, users
from tests import feature_repo_kit as kit

COLUMNS = ("user_id", "item_id", "rating", "event_timestamp")
TIME = datetime(2023, 6, 1, tzinfo=UTC)
FEAST_NAMES = (KeyError,)
"""What Feast itself says of a push without a feature of the view, by the feature's name, before the plugin sees it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A store to push to, and its memory."""

    store: FeatureStore
    engine: sa.Engine

    def counts(self) -> tuple[int, int, int]:
        """Return how many behaviors there are, how many the users have by their own count, and how many duplicates."""
        own = sa.select(sa.func.coalesce(sa.func.sum(users.c.behavior_count), 0))
        duplicates = sa.select(sa.func.coalesce(sa.func.sum(users.c.duplicate_count), 0))
        with self.engine.connect() as connection:
            found = (sa.select(sa.func.count()).select_from(behaviors), own, duplicates)
            counted = [int(connection.scalar(query) or 0) for query in found]
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        return counted[0], counted[1], counted[2]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    repo: Path = kit.repo_to_push_to(tmp_path_factory.mktemp("malformed") / "repo", on_the_fly="worker")
    store = kit.open_store(repo)
    store.push("behavior_push", valid())
    engine = sa.create_engine(f"sqlite:///{repo / 'data' / 'memory.db'}")
    yield Target(store=store, engine=engine)
    engine.dispose()
    kit.close(store)


def valid(count: int = 2) -> pd.DataFrame:
    """Return a push that is taken."""
    times = [pd.Timestamp(TIME + timedelta(seconds=row)) for row in range(count)]
    return pd.DataFrame(
        {
            "user_id": [f"u{row}" for row in range(count)],
            "item_id": [f"i{row}" for row in range(count)],
            "rating": [4.0] * count,
            "event_timestamp": times,
        }
    )


def assert_refused_or_taken(target: Target, rows: pd.DataFrame) -> bool:
    """Push `rows`; return whether they were taken, with all of them new or duplicates."""
    before = target.counts()
    try:
        target.store.push("behavior_push", rows)
    except (InvalidBehaviors, *FEAST_NAMES) as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 1_000
        assert target.counts() == before
        return False
    after = target.counts()
    assert after[0] == after[1]
    assert after[0] >= before[0]
    return after != before


NUL, SURROGATE = "a\x00b", "\ud800"
HUGE = "x" * 100_000

VALUES: dict[str, Any] = {
    "null": None,
    "NaN": float("nan"),
    "NaT": pd.NaT,
    "pandas' NA": pd.NA,
    "infinity": float("inf"),
    "a huge integer": 10**30,
    "a small integer": 3,
    "a bool": True,
    "a decimal": Decimal("4.25"),
    "a long decimal": Decimal("1e-60"),
    "a complex number": 1 + 2j,
    "a year too late": "9999-12-31T23:59:59Z",
    "a year of five digits": "10000-01-01",
    "a naive datetime of the year 1": datetime(1, 1, 1),  # noqa: DTZ001
    "a datetime of the year 9999": datetime(9999, 12, 31, tzinfo=UTC),
    "a date": TIME.date(),
    "a time of day": TIME.time(),
    "a span": timedelta(days=1),
    "a period": pd.Period("2023-01"),
    "an interval": pd.Interval(0, 1),
    "an empty text": "",
    "a text with NUL": NUL,
    "half a surrogate pair": SURROGATE,
    "a huge text": HUGE,
    "SQL": "u0'; DROP TABLE behaviors; --",
    "other scripts": "\u7528\u6237\U0001f600\u202e",
    "bytes": b"\xff\xfe",
    "a list": [1, 2],
    "a dict": {"a": 1},
    "a set": {1},
    "a tuple": ("a", 1),
    "an array": np.zeros((2, 2)),
    "an object": object(),
    "a class": int,
    "a frame": pd.DataFrame({"a": [1]}),
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_one_odd_value_in_one_column(target: Target, column: str, value: Any) -> None:
    rows = valid()
    values = np.empty(2, object)
    values[0], values[1] = rows[column].iloc[0], value
    is_taken = assert_refused_or_taken(target, rows.assign(**{column: pd.Series(values, dtype=object)}))
    if is_taken and column == "user_id":
        assert isinstance(value, str)


def twice(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows, rows["user_id"]], axis=1)


FRAMES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "nothing": lambda rows: rows.iloc[:0],
    "no columns": lambda rows: rows[[]],
    "no user": lambda rows: rows.drop(columns="user_id"),
    "no time": lambda rows: rows.drop(columns="event_timestamp"),
    "no item": lambda rows: rows.drop(columns="item_id"),
    "one more column": lambda rows: rows.assign(note="x"),
    "a column without a name": lambda rows: rows.assign(**{"": 1}),
    "a column twice": twice,
    "a rating twice": lambda rows: pd.concat([rows, rows["rating"]], axis=1),
    "a column named by a number": lambda rows: rows.rename(columns={"item_id": 7}),
    "a huge name": lambda rows: rows.rename(columns={"user_id": HUGE}),
    "a name with SQL": lambda rows: rows.rename(columns={"user_id": 'user_id"; DROP TABLE users; --'}),
    "names of two levels": lambda rows: rows.set_axis(pd.MultiIndex.from_product([["a"], rows.columns]), axis=1),
    "an index of two levels": lambda rows: rows.set_index(["user_id", "item_id"], drop=False),
    "categories": lambda rows: rows.astype({"user_id": "category", "item_id": "category"}),
    "categories with a null": lambda rows: rows.assign(user_id=pd.Categorical(["u0", None])),
    "categories of numbers": lambda rows: rows.assign(item_id=pd.Categorical([1, 2])),
    "sparse ratings": lambda rows: rows.assign(rating=pd.arrays.SparseArray([4.0, 4.0])),
    "integer ratings": lambda rows: rows.assign(rating=pd.array([4, 3], "Int64")),
    "half floats": lambda rows: rows.assign(rating=np.array([4, 3], np.float16)),
    "texts of numbers": lambda rows: rows.assign(rating=["4", "3"]),
    "naive times": lambda rows: rows.assign(event_timestamp=rows["event_timestamp"].dt.tz_localize(None)),
    "times of another zone": lambda rows: rows.assign(event_timestamp=rows.event_timestamp.dt.tz_convert("Asia/Tokyo")),
    "times in seconds": lambda rows: rows.assign(event_timestamp=rows["event_timestamp"].astype("datetime64[s, UTC]")),
    "times of two zones": lambda rows: rows.assign(event_timestamp=["2023-01-01T00:00+01:00", "2023-01-01T00:00Z"]),
    "times as numbers": lambda rows: rows.assign(event_timestamp=[1.5e9, 1.6e9]),
    "all null": lambda rows: rows.assign(rating=None, item_id=None),
    "the same row twice": lambda rows: pd.concat([rows.iloc[:1]] * 2),
}  # fmt: skip


@pytest.mark.parametrize("change", FRAMES.values(), ids=FRAMES)
def test_a_frame_of_another_shape(target: Target, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    rows = change(valid())
    if rows.empty or rows.get("item_id", pd.Series([1])).isna().all():
        with pytest.warns(UserWarning, match="Cannot write"):
            assert not assert_refused_or_taken(target, rows)
    else:
        assert_refused_or_taken(target, rows)


odd = st.one_of(
    st.sampled_from([value for value in VALUES.values() if not isinstance(value, (np.ndarray, pd.DataFrame))]),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.binary(max_size=4),
    st.datetimes(),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(COLUMNS), odd), max_size=3),
    st.sets(st.sampled_from(COLUMNS), max_size=1),
    st.permutations(COLUMNS),
)
def test_any_mixture_of_odd_values_is_refused_or_taken_as_a_whole(
    target: Target, changes: list[tuple[int, str, Any]], without: set[str], order: list[str]
) -> None:
    rows = valid(4)
    for row, column, value in changes:
        values = np.empty(4, object)
        values[:] = rows[column].tolist()
        values[row] = value
        rows[column] = pd.Series(values, dtype=object)
    assert_refused_or_taken(target, rows[[name for name in order if name not in without]])


@pytest.mark.parametrize("mode", [PushMode.OFFLINE, PushMode.ONLINE_AND_OFFLINE], ids=lambda mode: mode.name)
@pytest.mark.parametrize("value", [NUL, SURROGATE, None, 7], ids=["NUL", "half a pair", "null", "a number"])
def test_an_odd_id_reaches_neither_memory_nor_log(target: Target, mode: PushMode, value: Any) -> None:
    before, log = target.counts(), len(kit.log_of(Path(str(target.store.repo_path))))
    # For the log alone Feast makes a table of the frame itself, and says what it cannot read.
    feasts_own = (UnicodeEncodeError, pa.ArrowTypeError) if mode is PushMode.OFFLINE else ()
    with pytest.raises((InvalidBehaviors, *feasts_own)):
        target.store.push("behavior_push", valid().assign(user_id=["u0", value]), to=mode)
    assert (target.counts(), len(kit.log_of(Path(str(target.store.repo_path))))) == (before, log)


def test_what_is_pushed_after_all_that_is_taken(target: Target) -> None:
    rows = valid().assign(user_id=["after-1", "after-2"])
    before = target.counts()
    target.store.push("behavior_push", rows)
    assert target.counts()[0] == before[0] + 2
    found = kit.online(target.store, ["after-1"], "behaviors")
    assert found["behaviors__item_id"] == ["i0"]
