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
from deltalake import write_deltalake

from tests import feature_repo_kit as kit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    """Return every behavior of the log as a training sample with every LIBER feature."""
    store = kit.open_store(repo)
    entities = kit.log_of(repo).select(["user_id", "event_timestamp"]).to_pandas()
    features = kit.features_of(store, *kit.LIBER_VIEWS)
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
        for view in ("partition_summary", "partition_shift"):
            seen = sample[f"{view}__partition_index"]
            assert seen is None or seen < own
    assert filling == kit.SEALED_COUNT
    assert sum(place.values()) == sum(len(known.times) for known in users.values())


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
    changed = {row["user_id"]: row for row in kit.published(other, "partition_summary")}
    assert changed != {row["user_id"]: row for row in kit.published(repo, "partition_summary")}

    early = [sample for sample in samples if sample["event_timestamp"] <= cut]
    entities = pd.DataFrame([{name: sample[name] for name in ("user_id", "event_timestamp")} for sample in early])
    features = kit.features_of(store, *kit.LIBER_VIEWS)
    history = store.get_historical_features(entities, features, full_feature_names=True).to_arrow().to_pylist()
    kit.close(store)
    assert history == early
    assert any(sample["fused_vector__fused"] for sample in early)


def _changed_from(log: pa.Table, *, cut: datetime) -> pa.Table:
    """Return the log with other items and ratings at and after a time."""
    frame = log.to_pandas()
    later = frame["event_timestamp"] >= pd.Timestamp(cut)
    frame.loc[later, "rating"] = 6.0 - frame.loc[later, "rating"]
    frame.loc[later, "item_id"] = [f"i{number % 1200:04d}" for number in range(int(later.sum()))]
    return pa.Table.from_pandas(frame, schema=log.schema, preserve_index=False)
