"""Ten thousand malformed pushes: each is refused by a named error or taken whole, and what is taken goes all the way.

They come through the provider that every push comes through, through `store.push` into both stores, and as JSON
through Feast's feature server; into a log without ids of behaviors and into one with them.
"""

import json
import random
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore, FeatureView
from feast.data_source import PushMode
from feast.feature_server import get_app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liber_feast.engine import LiberComputeEngine
from liber_feast.errors import InvalidBehaviors
from liber_feast.forget import forget
from liber_feast.interest import ShiftRequest, SummaryRequest
from liber_feast.materialize import Job, Report
from liber_feast.memory.schema import behaviors, partitions, users
from liber_feast.partition import content_hashes
from liber_feast.prompt import load_prompt
from liber_feast.repo import repo_status
from liber_feast.republish import republish
from tests import feature_repo_kit as kit
from tests.malformed_parts import ID, ITEM, RATING, TIME, USER, malformed, valid
from tests.test_append_malformed import see_that_it_is_sound
from tests.worker_parts import LightEncoding

with warnings.catch_warnings():  # whichever HTTP client is installed, starlette may advise another
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

COUNTS = {"provider": 4_530, "both": 120, "server": 150, "hypothesis": 200}
"""Pushes by the way in which they come; of each of the two stores."""
JSON = {"Content-Type": "application/json"}
FEASTS_OWN = ("not in index", "are in the [columns]", "int too large to convert to float")
"""What Feast and pandas say of a body before the plugin sees it: a feature is missing, a number has 400 digits."""
SIZE = 12
START = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST = 700
"""Characters of a message."""

Key = tuple[str, str]
"""A user's and a behavior's id; where a log has none of these, what they are made of."""


@dataclass(kw_only=True)
class Target:
    """An open store, and what it is to know."""

    repo: Path
    store: FeatureStore
    with_ids: bool
    watch: sqlite3.Connection
    expected: dict[Key, float] = field(default_factory=dict)
    """The ratings of all that was taken."""
    row_count: int = 0
    """Rows of what was taken, those that came again included."""
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def engine(self) -> LiberComputeEngine:
        engine: LiberComputeEngine = self.store._get_provider().engine  # type: ignore[attr-defined]  # ours
        return engine

    @property
    def job(self) -> Job:
        return self.engine.job(self.store.registry)

    def version(self) -> int:
        """Return a number that changes with everything that is committed to the memory."""
        return int(self.watch.execute("PRAGMA data_version").fetchone()[0])

    def provide(self, rows: pd.DataFrame) -> None:
        """Push as `FeatureStore.push` does behind its own checks."""
        self.store._get_provider().ingest_df(self.view, rows)

    @cached_property
    def view(self) -> FeatureView:
        return self.store.get_feature_view("behaviors")

    def send(self, rows: pd.DataFrame, push: Callable[[pd.DataFrame], None]) -> bool:
        """Push, and return whether the rows were taken; a refusal is one short line and changes nothing."""
        before = self.version()
        try:
            push(rows)
        except InvalidBehaviors as error:
            assert error.message.isprintable()
            assert 20 < len(error.message) < LONGEST
            assert self.version() == before
            self.outcomes["refused"] += 1
            return False
        self.outcomes["taken"] += 1
        self.row_count += len(rows)
        for key, rating in self.keys(rows).items():
            self.expected.setdefault(key, rating)
        return True

    def keys(self, rows: pd.DataFrame) -> Mapping[Key, float]:
        """Return the ratings of rows that were taken, by what tells them apart; the first of two stays."""
        if not len(rows):
            return {}
        times = [_micros(one) for one in rows[TIME]]
        names = rows[ID] if self.with_ids else [f"{item} {time}" for item, time in zip(rows[ITEM], times, strict=True)]
        found = list(zip(map(str, rows[USER]), map(str, names), map(float, rows[RATING]), times, strict=True))
        found.sort(key=lambda row: row[3])  # of equal ids the earliest behavior is kept
        kept: dict[Key, float] = {}
        for user, name, rating, _ in found:
            kept.setdefault((user, name), rating)
        return kept

    def known(self) -> dict[Key, float]:
        """Return what the memory has, as `expected` has it."""
        columns = (users.c.user_id, behaviors.c.behavior_id, behaviors.c.item_id, behaviors.c.rating)
        query = sa.select(*columns, behaviors.c.event_time).join(users, users.c.user_key == behaviors.c.user_key)
        with self.job.memory.reading() as connection:
            rows = connection.execute(query).all()
        return {
            (row.user_id, row.behavior_id if self.with_ids else f"{row.item_id} {row.event_time}"): row.rating
            for row in rows
        }


def _micros(moment: Any) -> int:
    """Return a time as microseconds; naive ones are UTC."""
    time = pd.Timestamp("2023-06-01" if isinstance(moment, str) and moment == "2023-W22-4" else moment)
    aware = time.tz_localize("UTC") if time.tz is None else time.tz_convert("UTC")
    return (aware.to_pydatetime(warn=False) - START) // timedelta(microseconds=1)


@pytest.fixture(scope="module", params=[False, True], ids=["hashed ids", "own ids"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    repo = kit.repo_to_push_to(
        tmp_path_factory.mktemp("thousands") / "repo",
        on_the_fly="worker",
        partition={"condition": "count", "size": SIZE},
    )
    if request.param:
        log = kit.log_of(repo)
        ids = pa.array([f"log{row}" for row in range(len(log))])
        write_deltalake(repo / "data" / "behaviors", log.append_column(ID, ids), mode="overwrite", schema_mode="merge")
    store, first = kit.open_store(repo), valid(random.Random(0), with_ids=request.param)
    store.push("behavior_push", first)
    watch = sqlite3.connect(repo / "data" / "memory.db")
    target = Target(repo=repo, store=store, with_ids=request.param, watch=watch)
    target.expected, target.row_count = dict(target.keys(first)), len(first)
    yield target
    watch.close()
    kit.close(store)


def drawn(source: random.Random, *, with_ids: bool) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas', of what is made of odd values here
        return malformed(source, with_ids=with_ids)


def test_thousands_of_malformed_frames_are_refused_by_name_or_taken_whole(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    source, taken = random.Random(11), 0
    for _ in range(COUNTS["provider"]):
        taken += target.send(drawn(source, with_ids=target.with_ids), target.provide)
    assert COUNTS["provider"] / 5 < taken < COUNTS["provider"] / 2
    assert target.known() == target.expected
    facts = repo_status(target.repo)
    assert facts["behaviors"] + facts["duplicate_behaviors"] == target.row_count
    assert [one.getMessage() for one in caplog.records if one.name.startswith("liber_feast")] == []
    see_that_it_is_sound(target.job.memory)


values = st.one_of(
    st.none(),
    st.text(max_size=4),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.binary(max_size=4),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.uuids(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.lists(st.integers() | st.text(max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
texts, ratings = st.text(min_size=1, max_size=4), st.floats(0.5, 5.0)
columns = st.fixed_dictionaries(
    {
        USER: st.lists(texts, min_size=3, max_size=3) | st.lists(values, min_size=3, max_size=3),
        ITEM: st.lists(texts, min_size=3, max_size=3) | st.lists(values, min_size=3, max_size=3),
        RATING: st.lists(ratings, min_size=3, max_size=3) | st.lists(values, min_size=3, max_size=3),
        TIME: st.lists(st.datetimes(timezones=st.timezones()) | st.datetimes(), min_size=3, max_size=3)
        | st.lists(values, min_size=3, max_size=3),
    },
    optional={ID: st.lists(texts, min_size=3, max_size=3), "note": st.lists(values, min_size=3, max_size=3)},
)


@settings(max_examples=COUNTS["hypothesis"], suppress_health_check=list(HealthCheck))
@given(columns)
def test_whatever_values_columns_have_a_push_is_refused_by_name_or_taken_whole(
    target: Target, drawn: dict[str, list[Any]]
) -> None:
    frame = pd.DataFrame({name: pd.Series(some, dtype=object) for name, some in drawn.items()})
    target.send(frame, target.provide)


def test_what_is_refused_reaches_no_store_and_what_is_taken_both(target: Target) -> None:
    source, log = random.Random(12), DeltaTable(str(target.repo / "data" / "behaviors"))
    for _ in range(COUNTS["both"]):
        rows, before = drawn(source, with_ids=target.with_ids), _version(log)
        taken = before
        try:
            if target.send(rows, lambda some: _push(target.store, some)):
                taken += len(rows) > 0
        except KeyError:  # Feast's own, of a push without a feature of the view
            assert not {ITEM, RATING} <= set(rows.columns)
        assert _version(log) == taken
    assert target.known() == target.expected


def _push(store: FeatureStore, rows: pd.DataFrame) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Cannot write")
        try:
            store.push("behavior_push", rows, to=PushMode.ONLINE_AND_OFFLINE)
        except UserWarning as warning:
            raise InvalidBehaviors(f"Feast passes it over: {warning}") from warning


def _version(log: DeltaTable) -> int:
    log.update_incremental()
    return log.version()


def test_what_comes_as_json_is_answered_with_422_and_the_name_of_the_error_or_is_taken(target: Target) -> None:
    source, statuses = random.Random(13), Counter[int]()
    with warnings.catch_warnings(), TestClient(get_app(target.store), raise_server_exceptions=False) as client:
        warnings.filterwarnings("ignore", message="Cannot write")  # Feast's, of a body without values: it answers 200
        for _ in range(COUNTS["server"]):
            rows, before = drawn(source, with_ids=target.with_ids), target.version()
            body = {"push_source_name": "behavior_push", "df": _as_json(rows), "to": "online"}
            answer = client.post("/push", content=json.dumps(body), headers=JSON)
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                continue
            assert target.version() == before
            assert len(answer.text) < 2 * LONGEST
            if answer.status_code == 500:
                assert any(words in answer.json() for words in FEASTS_OWN)
            elif isinstance(answer.json(), str):
                assert json.loads(answer.json())["class"] == "InvalidBehaviors"
    assert statuses[200] > COUNTS["server"] / 10
    assert statuses[422] > COUNTS["server"] / 5
    assert statuses.keys() <= {200, 422, 500}
    target.expected = target.known()


def _as_json(rows: pd.DataFrame) -> Any:
    """Return a frame as a producer may send it: what JSON does not have as a text, or as something else again."""
    named = rows.loc[:, ~rows.columns.duplicated()]
    return {str(name): [_as_value(one) for one in named[name]] for name in named.columns}


def _as_value(value: Any) -> Any:
    if isinstance(value, (pd.Timestamp, np.datetime64)):
        return str(value)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return f"<{type(value).__name__}>"
    return value


def test_what_was_taken_goes_through_every_later_stage(target: Target, tmp_path: Path) -> None:
    """Sealed, summarized, encoded, published, read online and offline, written anew, forgotten; prompts are made."""
    odd = sorted({user for user, _ in target.known()} - {f"u{number}" for number in range(30)})
    fill = pd.concat([_filling(user, with_ids=target.with_ids) for user in odd])
    target.send(fill, target.provide)
    job = replace(target.job, encoding=LightEncoding(folder=tmp_path / "encoder", width=kit.WIDTH))
    _render_every_prompt(job)
    report = Report()
    job.drain(report)
    facts = repo_status(target.repo)
    undone = ("pending_partitions", "failed_partitions", "waiting_users", "unfinished_publications")
    assert [facts[name] for name in undone] == [0, 0, 0, 0]
    assert facts["summaries"] == facts["sealed_partitions"] >= len(odd)
    assert target.known() == target.expected
    _see_hashes(job)
    _see_online(target)
    _see_offline(target)
    for user in odd[:: len(odd) // 2]:
        assert forget(target.repo, user, keep_log=False, say=lambda _line: None)["behaviors"] >= SIZE
    assert republish(target.repo, stage="summary", user_id=odd[1], say=lambda _line: None)["online_rows"]
    see_that_it_is_sound(job.memory)


def _filling(user: str, *, with_ids: bool) -> pd.DataFrame:
    times = pd.date_range("2023-05-01", periods=SIZE, freq="h", tz="UTC")
    rows = pd.DataFrame({USER: user, ITEM: [f"i{row}" for row in range(SIZE)], RATING: 4.0, TIME: times})
    return rows.assign(**{ID: [f"fill{row}" for row in range(SIZE)]}) if with_ids else rows


def _render_every_prompt(job: Job) -> None:
    prompt, waves = load_prompt("movielens"), job.waves()
    waves.pending_count("summary")
    requests: list[SummaryRequest] = list(waves.summary_requests())
    assert requests
    for one in requests:
        shift = ShiftRequest(
            user_id=one.user_id,
            partition_index=1,
            previous_partition_index=0,
            previous_summary="before",
            summary=str(one.user_id),
            previous_behaviors=(),
            behaviors=one.behaviors,
        )
        for message in (*prompt.render_summary(one), *prompt.render_shift(shift)):
            message["content"].encode()


def _see_hashes(job: Job) -> None:
    """See that every partition's hash is that of its behaviors."""
    with job.memory.reading() as connection:
        sealed = connection.execute(sa.select(partitions)).all()
        for one in sealed:
            is_its = (behaviors.c.user_key == one.user_key) & (behaviors.c.partition_index == one.partition_index)
            order = (behaviors.c.order_time, behaviors.c.order_time > behaviors.c.event_time, behaviors.c.behavior_id)
            rows = connection.execute(sa.select(behaviors).where(is_its).order_by(*order)).all()
            (found,) = content_hashes(
                pa.array([row.behavior_id for row in rows]),
                pa.array([row.item_id for row in rows]),
                ratings=np.array([row.rating for row in rows]),
                times_us=np.array([row.event_time for row in rows]),
                starts=np.array([0]),
            )
            assert found == one.partition_hash


def _see_online(target: Target) -> None:
    every = Counter(user for user, _ in target.known())
    found = kit.online(target.store, list(every), "behavior_sequence", "partition_summary", "fused_vector")
    assert found["behavior_sequence__behavior_count"] == list(every.values())
    for user, count, summary in zip(every, every.values(), found["partition_summary__summary"], strict=True):
        assert (summary is None) == (count < SIZE), user


def _see_offline(target: Target) -> None:
    ids = sorted({user for user, _ in target.known()})
    rows = pd.DataFrame({USER: ids, TIME: pd.Timestamp("2024-01-01", tz="UTC")})
    features = ["partition_summary:summary", "long_term_memory:partition_count", "fused_vector:fused"]
    found = target.store.get_historical_features(rows, features).to_df().set_index(USER)
    every = Counter(user for user, _ in target.known())
    assert len(found) == len(ids)
    for user in ids:
        assert (found.loc[user, "summary"] is None or pd.isna(found.loc[user, "summary"])) == (every[user] < SIZE), user


def test_a_million_rows_are_refused_for_one_of_them_and_taken_without_it(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker", partition={"condition": "count", "size": 10**6})
    store, count = kit.open_store(repo), 1_000_000
    rows = np.arange(count)
    frame = pd.DataFrame(
        {
            USER: np.char.add("u", (rows % 100).astype(str)),
            ITEM: np.char.add("i", (rows % 1_000).astype(str)),
            RATING: 4.0,
            TIME: pd.Series((rows + 1_600_000_000).astype("datetime64[s]")).dt.tz_localize("UTC"),
        }
    )
    bad = frame.assign(**{RATING: np.where(rows == count - 1, 6.0, 4.0)})
    with pytest.raises(InvalidBehaviors, match=f"in 1 rows, first '6.0' in row {count - 1}"):
        store.push("behavior_push", bad)
    assert repo_status(repo)["users"] == 0
    store.push("behavior_push", frame)
    assert kit.online(store, ["u0", "u99"], "behavior_sequence")["behavior_sequence__behavior_count"] == [10_000] * 2
    assert repo_status(repo)["cached_behaviors"] == count
    kit.close(store)
