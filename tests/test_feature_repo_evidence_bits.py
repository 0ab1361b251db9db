"""The stage `evidence`, seen from outside: what the views show is worked out here again, from the stream alone.

The catalog of these repos is small, so that a push can wait for it. Which behaviors a sealed partition has is taken
from the memory; everything else is a sum over the published vectors of items.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore

from liber_feast.behavior import EVENT_TIME, ITEM, RATING, USER
from liber_feast.cli import app
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.encoding import Encoding
from liber_feast.errors import ConfigError
from liber_feast.evidence import PartitionEvidence, memory_evidence, partition_evidence
from liber_feast.memory.schema import behaviors, partitions, users
from tests import feature_repo_kit as kit

EVIDENCE, ITEM_TEXT = "partition_evidence", "item_text"
WIDTH = 3
LIKE_ABOVE = 3.0
ITEM_COUNT = 60
SECOND = timedelta(seconds=1)

Vector: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rated:
    """A behavior of the memory that is in a sealed partition; times are microseconds."""

    user_id: str
    partition_index: int
    item_id: str
    rating: float
    event_time: int


def few_items(repo: Path) -> list[str]:
    """Leave the items of the log, and some more, in the catalog; return their ids."""
    path = repo / "data" / "items"
    rows = DeltaTable(str(path)).to_pyarrow_table().combine_chunks()
    used = set(kit.log_of(repo)[ITEM].to_pylist())
    others = [one for one in rows[ITEM].to_pylist() if one not in used]
    kept = sorted({*used, *others[: max(0, ITEM_COUNT - len(used))]})
    write_deltalake(str(path), rows.filter(pc.is_in(rows[ITEM], pa.array(kept))), mode="overwrite")
    return kept


def new_repo(folder: Path, **engine: Any) -> Path:
    """Return an applied repo with the stage, a log and nothing in its memory."""
    repo = kit.repo_to_push_to(folder, **{"evidence": {"width": WIDTH}, **engine})
    few_items(repo)
    return repo


@contextmanager
def opened(repo: Path) -> Iterator[FeatureStore]:
    store = kit.open_store(repo)
    try:
        yield store
    finally:
        kit.close(store)


def rows_of(repo: Path, view: str) -> list[dict[str, Any]]:
    """Return the rows of a view's Delta table in a fixed order, without the time of creation."""
    with opened(repo) as store:
        found = store.get_feature_view(view)
    path = repo / found.batch_source.path
    if not DeltaTable.is_deltatable(str(path)):
        return []
    rows = DeltaTable(str(path)).to_pyarrow_table().drop_columns(["created_timestamp"])
    last = [("partition_index", "ascending")] if "partition_index" in rows.column_names else []
    keys = [(found.join_keys[0], "ascending"), (EVENT_TIME, "ascending"), *last]
    result: list[dict[str, Any]] = rows.sort_by(keys).to_pylist()
    return result


def items_of(repo: Path) -> dict[str, list[tuple[int, Vector]]]:
    """Return the published vectors of every item with their times, oldest first."""
    found: dict[str, list[tuple[int, Vector]]] = defaultdict(list)
    for row in rows_of(repo, ITEM_TEXT):
        found[row[ITEM]].append((micros(row[EVENT_TIME]), np.float32(row["vector"])))
    return found


def micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def vector_at(items: Mapping[str, Sequence[tuple[int, Vector]]], item_id: str, *, time: int) -> Vector:
    """Return the vector of an item as of a time: of one described only later the first, of an unknown one zeros."""
    versions = items.get(item_id)
    if not versions:
        return np.zeros(WIDTH, np.float32)
    before = [vector for since, vector in versions if since <= time]
    return before[-1] if before else versions[0][1]


def sealed_of(repo: Path) -> dict[tuple[str, int], list[Rated]]:
    """Return the behaviors of every sealed partition by user and index, in the order (event time, behavior id)."""
    names = (behaviors.c.partition_index, behaviors.c.item_id, behaviors.c.rating, behaviors.c.event_time)
    query = (
        sa.select(users.c.user_id, *names)
        .join(users, users.c.user_key == behaviors.c.user_key)
        .where(behaviors.c.partition_index.is_not(None))
        .order_by(users.c.user_id, behaviors.c.event_time, behaviors.c.behavior_id)
    )
    engine, found = sa.create_engine(f"sqlite:///{repo / 'data' / 'memory.db'}"), defaultdict(list)
    with engine.connect() as connection:
        for row in connection.execute(query):
            one = Rated(**row._mapping)
            found[one.user_id, one.partition_index].append(one)
    engine.dispose()
    return found


def seal_times(repo: Path) -> dict[tuple[str, int], int]:
    query = sa.select(users.c.user_id, partitions.c.partition_index, partitions.c.seal_time)
    engine = sa.create_engine(f"sqlite:///{repo / 'data' / 'memory.db'}")
    with engine.connect() as connection:
        joined = query.join(users, users.c.user_key == partitions.c.user_key)
        found = {(user, index): time for user, index, time in connection.execute(joined)}
    engine.dispose()
    return found


def expected_rows(repo: Path) -> list[dict[str, Any]]:
    """Return what `partition_evidence` has to hold, but the encoder version."""
    items, times, of_user = items_of(repo), seal_times(repo), defaultdict[str, list[PartitionEvidence]](list)
    for (user, index), sealed in sorted(sealed_of(repo).items()):
        assert index == len(of_user[user])
        vectors = np.stack([vector_at(items, one.item_id, time=one.event_time) for one in sealed])
        of_user[user].append(partition_evidence(vectors, liked=np.array([one.rating > LIKE_ABOVE for one in sealed])))
    rows = []
    for user, found in of_user.items():
        memory = memory_evidence(found)
        rows += [
            {
                USER: user,
                "partition_index": index,
                "evidence": one.evidence.tolist(),
                "like_rate": one.like_rate,
                "behavior_count": one.behavior_count,
                "memory_evidence": memory.evidence[index].tolist(),
                "memory_like_rate": float(memory.like_rates[index]),
                "memory_behavior_count": int(memory.behavior_counts[index]),
                EVENT_TIME: times[user, index],
            }
            for index, one in enumerate(found)
        ]
    return rows


def assert_as_expected(repo: Path) -> list[dict[str, Any]]:
    """Check every row of `partition_evidence` to the last bit, and what is online; return the rows."""
    found = rows_of(repo, EVIDENCE)
    plain = [{name: value for name, value in row.items() if name != "encoder_version"} for row in found]
    plain = [{**row, EVENT_TIME: micros(row[EVENT_TIME])} for row in plain]
    assert sorted(plain, key=_place) == sorted(expected_rows(repo), key=_place)
    assert_online_is_newest(repo, found)
    return found


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row[USER], row["partition_index"]


def assert_online_is_newest(repo: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    newest = {row[USER]: row for row in sorted(rows, key=lambda row: int(row["partition_index"]))}
    names, later = kit.users_of(repo), datetime.now(UTC) + timedelta(days=1)
    with opened(repo) as store:
        features = kit.features_of(store, EVIDENCE)
        online = store.get_online_features(features, [{USER: name} for name in names]).to_dict()
        entities = pd.DataFrame({USER: names, "event_timestamp": [later] * len(names)})
        offline = store.get_historical_features(entities, features).to_arrow().to_pylist()
    for place, name in enumerate(names):
        for feature in (one.split(":")[1] for one in features):
            expected = newest[name][feature] if name in newest else None
            assert online[feature][place] == expected, (name, feature)
            assert offline[place][feature] == expected, (name, feature)


def arrivals(repo: Path, *, seed: int) -> list[pd.DataFrame]:
    """Return the log in random batches; of the rows some come later than they happened, and one comes twice."""
    random, log = Random(seed), kit.log_of(repo)
    order = sorted(range(len(log)), key=lambda place: place + (random.randrange(40) if random.random() < 0.2 else 0))
    order.insert(len(order) // 2, order[0])
    batches, start = [], 0
    while start < len(order):
        size = random.choice((1, 2, 5, 13))
        batches.append(
            kit.frame(log.take(pa.array(order[start : start + size]))).drop_duplicates([USER, ITEM, EVENT_TIME])
        )
        start += size
    return batches


def test_one_materialization_publishes_every_item_and_the_evidence_of_every_partition(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with opened(repo) as store:
        store.materialize(kit.START, kit.END)
    rows, items = assert_as_expected(repo), rows_of(repo, ITEM_TEXT)
    assert len(rows) == kit.SEALED_COUNT
    assert len({one["encoder_version"] for one in (*rows, *items)}) == 1
    catalog = DeltaTable(str(repo / "data" / "items")).to_pyarrow_table().select([ITEM, EVENT_TIME]).to_pylist()
    assert {(one[ITEM], one[EVENT_TIME]) for one in items} == {(one[ITEM], one[EVENT_TIME]) for one in catalog}
    assert all(len(one["vector"]) == WIDTH and np.any(one["vector"]) for one in items)
    with opened(repo) as store:
        ids = [one[ITEM] for one in items]
        online = store.get_online_features([f"{ITEM_TEXT}:vector"], [{ITEM: one} for one in ids]).to_dict()
    assert online["vector"] == [one["vector"] for one in items]


@pytest.mark.parametrize("seed", range(2))
def test_a_stream_in_order_in_any_split_gives_the_bits_of_one_materialization(tmp_path: Path, seed: int) -> None:
    whole, pushed = new_repo(tmp_path / "whole"), new_repo(tmp_path / "pushed")
    with opened(whole) as store:
        store.materialize(kit.START, kit.END)
    random, log = Random(seed), kit.log_of(pushed)
    with opened(pushed) as store:
        start = 0
        while start < len(log):
            size = random.choice((1, 3, 9))
            store.push("behavior_push", kit.frame(log.slice(start, size)))
            start += size
    assert assert_as_expected(pushed) == assert_as_expected(whole)


@pytest.mark.parametrize("seed", range(3))
def test_late_and_repeated_behaviors_leave_the_evidence_that_the_partitions_have(tmp_path: Path, seed: int) -> None:
    repo = new_repo(tmp_path / "repo")
    published: list[dict[str, Any]] = []
    with opened(repo) as store:
        for number, batch in enumerate(arrivals(repo, seed=seed)):
            store.push("behavior_push", batch)
            if number % 8 == 0:
                before, published = published, rows_of(repo, EVIDENCE)
                assert all(row in published for row in before)  # what was published never changes
    rows = assert_as_expected(repo)
    assert len(rows) == len(sealed_of(repo)) > 0
    late = {user: [row[EVENT_TIME] for row in rows if row[USER] == user] for user in kit.users_of(repo)}
    assert all(times == sorted(times) for times in late.values())


def test_a_published_row_depends_on_no_later_partition(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    log = kit.log_of(repo)
    with opened(repo) as store:
        store.push("behavior_push", kit.frame(log.slice(0, len(log) // 2)))
        first = rows_of(repo, EVIDENCE)
        other = kit.frame(log.slice(len(log) // 2))
        other[RATING] = 6.0 - other[RATING]
        store.push("behavior_push", other)
    assert first and all(row in rows_of(repo, EVIDENCE) for row in first)
    assert len(assert_as_expected(repo)) > len(first)


def test_a_sample_sees_the_partitions_that_were_sealed_before_it(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with opened(repo) as store:
        store.materialize(kit.START, kit.END)
        entities = kit.log_of(repo).select([USER, ITEM, EVENT_TIME]).to_pandas()
        features = kit.features_of(store, EVIDENCE, ITEM_TEXT)
        samples = store.get_historical_features(entities, features, full_feature_names=True).to_arrow().to_pylist()
    last_times = {key: max(one.event_time for one in sealed) for key, sealed in sealed_of(repo).items()}
    rows, items = {(row[USER], row["partition_index"]): row for row in expected_rows(repo)}, items_of(repo)
    seen = 0
    for sample in samples:
        user, time = sample[USER], micros(sample[EVENT_TIME])
        before = [index for (name, index), last in last_times.items() if name == user and last < time]
        newest = max(before, default=None)
        assert sample[f"{EVIDENCE}__partition_index"] == newest
        expected = None if newest is None else rows[user, newest]["memory_evidence"]
        assert sample[f"{EVIDENCE}__memory_evidence"] == expected
        seen += newest is not None
        shown = [vector for since, vector in items[sample[ITEM]] if since <= time]
        assert sample[f"{ITEM_TEXT}__vector"] == (shown[-1].tolist() if shown else None)
    assert 0 < seen < len(samples)


def test_an_item_without_attributes_counts_and_says_nothing(tmp_path: Path) -> None:
    repo, at = new_repo(tmp_path / "repo"), datetime(2023, 6, 1, tzinfo=UTC)
    known = kit.log_of(repo)[ITEM][0].as_py()
    with opened(repo) as store:
        store.push("behavior_push", kit.frame(kit.log_of(repo)))
        ratings = zip(("nobody-knows-me", "nor-me", known, known), (5.0, 1.0, 5.0, 1.0), strict=True)
        for second, (item, rating) in enumerate(ratings):
            store.push("behavior_push", kit.behavior("new", item, at=at + second * SECOND, rating=rating))
        online = store.get_online_features([f"{EVIDENCE}:behavior_count", f"{EVIDENCE}:evidence"], [{USER: "new"}])
    (row,) = [row for row in assert_as_expected(repo) if row[USER] == "new"]
    assert (row["behavior_count"], row["like_rate"]) == (4, 0.5)
    assert row["evidence"] == [0.0] * WIDTH  # the known item was liked once and disliked once
    assert online.to_dict()["behavior_count"] == [4]
    assert not [one for one in rows_of(repo, ITEM_TEXT) if one[ITEM] in ("nobody-knows-me", "nor-me")]


def test_attributes_that_change_later_give_a_row_of_their_own_and_change_no_sealed_evidence(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with opened(repo) as store:
        store.materialize(kit.START, kit.END)
    before = {view: rows_of(repo, view) for view in (EVIDENCE, ITEM_TEXT)}
    path, after = repo / "data" / "items", datetime(2023, 12, 1, tzinfo=UTC)
    items = DeltaTable(str(path)).to_pyarrow_table().slice(0, 4)
    changed = items.set_column(items.column_names.index("title"), "title", pa.array(["A Quiet Western"] * 4))
    times = pa.array([after] * 4, pa.timestamp("us", tz="UTC"))
    changed = changed.set_column(changed.column_names.index(EVENT_TIME), EVENT_TIME, times)
    write_deltalake(str(path), changed, mode="append")
    with opened(repo) as store:
        for place, item in enumerate(changed[ITEM].to_pylist()):
            at, rating = after + (place + 1) * SECOND, (5.0, 1.0)[place % 2]
            store.push("behavior_push", kit.behavior("late", item, at=at, rating=rating))
        store.materialize(kit.START, kit.END)
        ids = [{ITEM: one} for one in changed[ITEM].to_pylist()]
        online = store.get_online_features([f"{ITEM_TEXT}:vector"], ids).to_dict()["vector"]
    rows = assert_as_expected(repo)
    assert all(row in rows for row in before[EVIDENCE])
    newer = [row for row in rows_of(repo, ITEM_TEXT) if row not in before[ITEM_TEXT]]
    assert {(row[ITEM], row[EVENT_TIME]) for row in newer} == {(one, after) for one in changed[ITEM].to_pylist()}
    by_item = {row[ITEM]: row["vector"] for row in newer}
    assert online == [by_item[one] for one in changed[ITEM].to_pylist()]


def test_partitions_that_were_sealed_without_the_stage_get_their_evidence_at_the_next_run(tmp_path: Path) -> None:
    whole, late = new_repo(tmp_path / "whole"), new_repo(tmp_path / "late", evidence=None)
    with opened(whole) as store:
        store.materialize(kit.START, kit.END)
    with opened(late) as store:
        store.materialize(kit.START, kit.END)
        assert rows_of(late, EVIDENCE) == rows_of(late, ITEM_TEXT) == []
    for table in kit.PUBLISHED_TABLES:
        if table not in (EVIDENCE, ITEM_TEXT):
            assert kit.published(late, table) == kit.published(whole, table)
    kit.set_engine(late, evidence={"width": WIDTH})
    with opened(late) as store:
        store.materialize(kit.START, kit.END)
    assert assert_as_expected(late) == assert_as_expected(whole)


def test_republishing_makes_the_rows_again_without_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_encoding: Encoding) -> None:
        raise AssertionError("republishing opened BERT")

    repo = new_repo(tmp_path / "repo")
    with opened(repo) as store:
        store.materialize(kit.START, kit.END)
        path = repo / store.get_feature_view(EVIDENCE).batch_source.path
    before = {view: rows_of(repo, view) for view in (EVIDENCE, ITEM_TEXT)}
    write_deltalake(str(path), DeltaTable(str(path)).to_pyarrow_table().slice(0, 1), mode="overwrite")
    monkeypatch.setattr(Encoding, "bert", refuse)
    app(["republish", "--repo", str(repo), "--json"], standalone_mode=False)
    assert {view: rows_of(repo, view) for view in (EVIDENCE, ITEM_TEXT)} == before
    assert_as_expected(repo)


def test_who_is_forgotten_leaves_no_evidence_and_items_stay(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with opened(repo) as store:
        store.materialize(kit.START, kit.END)
    items, (first, *others) = rows_of(repo, ITEM_TEXT), kit.users_of(repo)
    assert any(row[USER] == first for row in rows_of(repo, EVIDENCE))
    app(["forget", first, "--repo", str(repo), "--json"], standalone_mode=False)
    rows = rows_of(repo, EVIDENCE)
    assert {row[USER] for row in rows} <= set(others) and rows
    assert rows_of(repo, ITEM_TEXT) == items
    with opened(repo) as store:
        online = store.get_online_features([f"{EVIDENCE}:evidence"], [{USER: first}]).to_dict()
    assert online["evidence"] == [None]


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"widht": 3}, "unknown key 'batch_engine.evidence.widht'; allowed: width, text. Did you mean 'width'?"),
        ({"width": 0}, "batch_engine.evidence.width: Input should be greater than 0, found 0."),
        ({"text": "title"}, "batch_engine.evidence.text: Input should be 'full' or 'categories', found 'title'."),
    ],
    ids=["an unknown key", "no width", "other texts"],
)
def test_a_block_that_cannot_be_used_is_said_in_one_line(block: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^feature_store.yaml: {re.escape(line)}$"):
        LiberComputeEngineConfig(evidence=block)
