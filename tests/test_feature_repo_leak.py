"""No training sample sees anything that was made from its own behavior or from a later one."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests import feature_repo_kit as kit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SOURCE_VIEWS = ("user_profile", "item_attributes", "behaviors")
"""Views on the loaded tables; a sample sees their rows at its own time, as in any Feast view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """One user's behaviors and partitions, worked out from the log alone."""

    times: Sequence[int]
    items: Sequence[str]
    ratings: Sequence[float]

    @property
    def last_times(self) -> list[int]:
        """The time of the last behavior of every sealed partition."""
        return list(self.times[kit.SIZE - 1 :: kit.SIZE])

    def before(self, time: int) -> tuple[int, int]:
        """Return how many behaviors, and how many partitions, lie strictly before a time."""
        return bisect_left(self.times, time), bisect_left(self.last_times, time)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def known_users(log: pa.Table) -> dict[str, Known]:
    columns: dict[str, tuple[list[int], list[str], list[float]]] = defaultdict(lambda: ([], [], []))
    for row in log.to_pylist():
        times, items, ratings = columns[row["user_id"]]
        times.append(micros(row["event_timestamp"]))
        items.append(row["item_id"])
        ratings.append(row["rating"])
    return {user: Known(times=times, items=items, ratings=ratings) for user, (times, items, ratings) in columns.items()}


def samples_of(repo: Path) -> list[dict[str, Any]]:
    """Return every behavior of the log as a training sample with every feature of the repo."""
    store = kit.open_store(repo)
    entities = kit.log_of(repo).select(["user_id", "item_id", "event_timestamp"]).to_pandas()
    features = kit.features_of(store, *kit.LIBER_VIEWS, kit.ITEM_VIEW, *SOURCE_VIEWS)
    found: list[dict[str, Any]] = (
        store.get_historical_features(entities, features, full_feature_names=True).to_arrow().to_pylist()
    )
    assert len(found) == len(entities)
    return found


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.materialized_repo(tmp_path_factory.mktemp("leak") / "repo")


@pytest.fixture(scope="module")
def samples(repo: Path) -> list[dict[str, Any]]:
    return samples_of(repo)


@pytest.fixture(scope="module")
def users(repo: Path) -> Mapping[str, Known]:
    return known_users(kit.log_of(repo))


def test_no_view_of_the_repo_is_left_out(repo: Path) -> None:
    store = kit.open_store(repo)
    assert {view.name for view in store.list_all_feature_views()} == {*kit.LIBER_VIEWS, kit.ITEM_VIEW, *SOURCE_VIEWS}


def test_the_samples_have_ties_and_fill_caches(users: Mapping[str, Known]) -> None:
    tied = [user for user, known in users.items() if len(set(known.times)) < len(known.times)]
    assert len(tied) >= 3
    within = sum(known.times[end - 1] == known.times[end] for known in users.values() for end in partition_ends(known))
    assert within >= 3  # a partition ends between behaviors of one time


def partition_ends(known: Known) -> range:
    return range(kit.SIZE, len(known.times) - 1, kit.SIZE)


def test_a_sequence_holds_the_last_behaviors_strictly_before_its_sample(
    samples: list[dict[str, Any]], users: Mapping[str, Known]
) -> None:
    for sample in samples:
        known, time = users[sample["user_id"]], micros(sample["event_timestamp"])
        count, _ = known.before(time)
        shown = slice(max(0, count - kit.LENGTH), count)
        assert (sample["behavior_sequence__behavior_count"] or 0) == count
        assert (sample["behavior_sequence__times"] or []) == list(known.times[shown])
        assert (sample["behavior_sequence__item_ids"] or []) == list(known.items[shown])
        assert (sample["behavior_sequence__ratings"] or []) == list(known.ratings[shown])
        assert all(one < time for one in sample["behavior_sequence__times"] or [])


def test_a_partition_is_seen_by_samples_after_all_of_its_behaviors(
    samples: list[dict[str, Any]], users: Mapping[str, Known]
) -> None:
    for sample in samples:
        known, time = users[sample["user_id"]], micros(sample["event_timestamp"])
        _, partition_count = known.before(time)
        newest = partition_count - 1 if partition_count else None
        assert sample["partition_summary__partition_index"] == newest
        assert sample["partition_summary__last_time"] == (known.last_times[newest] if newest is not None else None)
        assert newest is None or sample["partition_summary__last_time"] < time
        assert sample["partition_shift__partition_index"] == (newest if newest else None)
        assert sample["partition_evidence__partition_index"] == newest
        shown = min(partition_count, kit.WINDOW) or None
        assert sample["long_term_memory__partition_count"] == shown
        assert sample["fused_vector__partition_count"] == shown


def test_the_vectors_of_a_sample_are_those_of_the_partitions_before_it(
    repo: Path, samples: list[dict[str, Any]], users: Mapping[str, Known]
) -> None:
    rows = kit.published(repo, "partition_vector")
    vectors = {(row["user_id"], row["partition_index"]): np.float32(row["vector"]) for row in rows}
    for sample in samples:
        user = sample["user_id"]
        _, count = users[user].before(micros(sample["event_timestamp"]))
        shown = [vectors[user, index] for index in range(max(0, count - kit.WINDOW), count)]
        if not shown:
            assert sample["long_term_memory__vectors"] is None
            assert sample["fused_vector__fused"] is None
            continue
        assert np.float32(sample["long_term_memory__vectors"]).tolist() == np.concatenate(shown).tolist()
        np.testing.assert_allclose(sample["fused_vector__fused"], np.mean(shown, axis=0), rtol=1e-5, atol=1e-6)


def test_the_evidence_of_a_sample_is_that_of_the_likes_in_the_partitions_before_it(
    repo: Path, samples: list[dict[str, Any]], users: Mapping[str, Known]
) -> None:
    vectors = {row["item_id"]: np.float64(row["vector"]) for row in kit.published(repo, "item_text", key="item_id")}
    seen = 0
    for sample in samples:
        known, time = users[sample["user_id"]], micros(sample["event_timestamp"])
        _, count = known.before(time)
        if not count:
            assert sample["partition_evidence__memory_evidence"] is None
            continue
        parts = [slice(kit.SIZE * index, kit.SIZE * (index + 1)) for index in range(count)]
        likes = [np.array(known.ratings[part]) > 3 for part in parts]
        of_items = [np.stack([vectors[item] for item in known.items[part]]) for part in parts]
        evidence = [((like - like.mean())[:, None] * rows).mean(0) for like, rows in zip(likes, of_items, strict=True)]
        found = {name: sample[f"partition_evidence__{name}"] for name in ("evidence", "memory_evidence")}
        np.testing.assert_allclose(found["evidence"], evidence[-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["memory_evidence"], np.mean(evidence, axis=0), rtol=1e-5, atol=1e-6)
        assert sample["partition_evidence__like_rate"] == likes[-1].mean()
        assert sample["partition_evidence__memory_like_rate"] == np.mean(likes)
        assert sample["partition_evidence__memory_behavior_count"] == kit.SIZE * count
        seen += 1
    assert seen > kit.SEALED_COUNT


def test_a_behavior_that_fills_its_cache_does_not_see_its_own_partition(
    samples: list[dict[str, Any]], users: Mapping[str, Known]
) -> None:
    place: dict[str, int] = defaultdict(int)
    filling = 0
    for sample in samples:  # in the order of the log, so each user's in the order of the stream
        user = sample["user_id"]
        place[user] += 1
        if place[user] % kit.SIZE:
            continue
        filling += 1
        own = place[user] // kit.SIZE - 1
        for view in ("partition_summary", "partition_shift", "partition_evidence"):
            seen = sample[f"{view}__partition_index"]
            assert seen is None or seen < own
    assert filling == kit.SEALED_COUNT
    assert sum(place.values()) == sum(len(known.times) for known in users.values())


def test_the_raw_stream_shows_no_later_behavior_and_no_service_reads_it(
    repo: Path, samples: list[dict[str, Any]]
) -> None:
    at: dict[tuple[str, datetime], set[tuple[str, float]]] = defaultdict(set)
    for row in kit.log_of(repo).to_pylist():
        at[row["user_id"], row["event_timestamp"]].add((row["item_id"], row["rating"]))
    for sample in samples:  # it is a behavior itself, so the latest at its time may be its own: a label
        shown = (sample["behaviors__item_id"], sample["behaviors__rating"])
        assert shown in at[sample["user_id"], sample["event_timestamp"]]
    services = kit.open_store(repo).list_feature_services()
    read = {projection.name for service in services for projection in service.feature_view_projections}
    assert read and "behaviors" not in read


def test_what_was_not_yet_created_is_not_seen_when_created_times_count(repo: Path) -> None:
    store = kit.open_store(repo)
    newest = kit.log_of(repo).slice(len(kit.log_of(repo)) - 1).select(["user_id", "event_timestamp"]).to_pandas()
    features = kit.features_of(store, *kit.LIBER_VIEWS)
    later = newest.assign(event_timestamp=pd.Timestamp.now("UTC").as_unit("us") + pd.Timedelta(days=1))
    then, now = (
        store.get_historical_features(
            frame, features, full_feature_names=True, filter_by_created_timestamp=True
        ).to_arrow()
        for frame in (newest, later)
    )
    published = [name for name in then.column_names if name.split("__")[0] in kit.LIBER_VIEWS[1:]]
    assert all(then[name][0].as_py() is None for name in published)
    assert all(now[name][0].as_py() is not None for name in published)
    assert then["behavior_sequence__behavior_count"][0].as_py()  # the log has no created time


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_features_do_not_depend_on_what_comes_at_or_after_their_sample(
    repo: Path, samples: list[dict[str, Any]], tmp_path: Path, share: float
) -> None:
    log = kit.log_of(repo)
    cut = log["event_timestamp"][int(share * len(log))].as_py()
    other = kit.repo_to_push_to(tmp_path / "other")
    write_deltalake(str(other / "data" / "behaviors"), _changed_from(log, cut=cut), mode="overwrite")
    store = kit.open_store(other)
    store.materialize(kit.START, kit.END)
    _write_new_versions(other, after=cut)
    changed = {row["user_id"]: row for row in kit.published(other, "partition_summary")}
    assert changed != {row["user_id"]: row for row in kit.published(repo, "partition_summary")}

    entities = pd.DataFrame(
        [{name: row[name] for name in ("user_id", "item_id", "event_timestamp")} for row in samples]
    )
    features = kit.features_of(store, *kit.LIBER_VIEWS, kit.ITEM_VIEW, *SOURCE_VIEWS)
    history = store.get_historical_features(entities, features, full_feature_names=True).to_arrow().to_pylist()
    kit.close(store)
    early = [place for place, sample in enumerate(samples) if sample["event_timestamp"] <= cut]
    for place in early:
        assert _without_raw_stream(history[place]) == _without_raw_stream(samples[place])
    assert any(samples[place]["fused_vector__fused"] for place in early)
    for sample in history[len(early) :]:
        assert (sample["user_profile__profile"], sample["item_attributes__title"]) == ("changed", "changed")


def test_a_summary_is_made_of_what_was_known_when_its_partition_was_sealed(
    repo: Path, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    cut = kit.log_of(repo)["event_timestamp"][-1].as_py()
    other = kit.repo_to_push_to(tmp_path / "other")
    _write_new_versions(other, after=cut)
    store = kit.open_store(other)
    store.materialize(kit.START, kit.END)
    entities = pd.DataFrame([{name: row[name] for name in ("user_id", "event_timestamp")} for row in samples])
    found = store.get_historical_features(entities, ["partition_summary:summary"]).to_arrow()
    kit.close(store)
    assert found["summary"].to_pylist() == [sample["partition_summary__summary"] for sample in samples]


def _without_raw_stream(sample: dict[str, Any]) -> dict[str, Any]:
    """Leave out what depends on the order of a file: which of several behaviors at a sample's own time is shown."""
    return {name: value for name, value in sample.items() if not name.startswith("behaviors__")}


def _write_new_versions(repo: Path, *, after: datetime) -> None:
    for table in ("users", "items"):
        write_deltalake(str(repo / "data" / table), _new_version(repo / "data" / table, after=after), mode="append")


def _new_version(path: Path, *, after: datetime) -> pa.Table:
    """Return every row of a table once more, a microsecond later than a time and with other texts."""
    rows = DeltaTable(str(path)).to_pyarrow_table()
    moment = pa.array([after + timedelta(microseconds=1)] * len(rows), pa.timestamp("us", tz="UTC"))
    changed = pa.array(["changed"] * len(rows))
    for name in {"profile", "title"} & set(rows.column_names):
        rows = rows.set_column(rows.column_names.index(name), name, changed)
    return rows.set_column(rows.column_names.index("event_timestamp"), "event_timestamp", moment)


def _changed_from(log: pa.Table, *, cut: datetime) -> pa.Table:
    """Return the log with other items and ratings at and after a time."""
    frame = log.to_pandas()
    later = frame["event_timestamp"] >= pd.Timestamp(cut)
    frame.loc[later, "rating"] = 6.0 - frame.loc[later, "rating"]
    frame.loc[later, "item_id"] = [f"i{number % 1200:04d}" for number in range(int(later.sum()))]
    return pa.Table.from_pandas(frame, schema=log.schema, preserve_index=False)
