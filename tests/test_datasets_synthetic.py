"""The synthetic data set: exact counts, the same for a same seed, and tastes worth learning."""

from datetime import UTC, datetime

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from liber_feast.datasets import read_data_set
from liber_feast.datasets.synthetic import ITEM_COUNT, LAST_TIME, MOST_PER_USER, simulate
from tests.test_datasets import refusal


def test_the_default_is_300_users_and_exactly_36_000_behaviors() -> None:
    data_set = read_data_set("synthetic")
    counts = data_set.counts
    assert (counts["behaviors"], counts["users"], counts["items"]) == (36_000, 300, 1_200)
    assert len(pc.unique(data_set.behaviors["user_id"])) == 300
    assert counts["duplicates"] == counts["items_without_attributes"] == counts["unsorted"] == 0
    assert counts["count_checked"] == 1


def test_one_seed_gives_identical_tables_and_another_seed_others() -> None:
    first, again, other = (read_data_set("synthetic", seed=seed, users=20) for seed in (7, 7, 8))
    for name in ("behaviors", "items", "users"):
        assert getattr(first, name).equals(getattr(again, name))
        assert not getattr(first, name).equals(getattr(other, name))


def test_the_data_do_not_depend_on_the_clock() -> None:
    early, late = (read_data_set("synthetic", users=5, now=datetime(year, 1, 1, tzinfo=UTC)) for year in (2024, 2040))
    assert early.behaviors.equals(late.behaviors)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.integers(1, MOST_PER_USER), st.integers(0, 1000))
def test_any_possible_number_of_behaviors_is_met_exactly(users: int, per_user: int, seed: int) -> None:
    world = simulate(seed=seed, user_count=users, behavior_count=users * per_user)
    assert len(world.item) == len(world.time) == len(world.rating) == users * per_user
    assert set(world.user.tolist()) == set(range(users))
    pairs = world.user * ITEM_COUNT + world.item
    assert len(np.unique(pairs)) == len(pairs)
    same_user = world.user[1:] == world.user[:-1]
    assert (np.diff(world.time)[same_user] > 0).all()
    assert world.time.max() < LAST_TIME.timestamp()


@pytest.mark.parametrize(("users", "behaviors"), [(0, None), (10, 9), (2, 2 * MOST_PER_USER + 1), (5, 0)])
def test_numbers_that_cannot_be_are_refused(users: int, behaviors: int | None) -> None:
    keywords = {"users": users} | ({} if behaviors is None else {"behaviors": behaviors})
    assert "synthetic data cannot have" in refusal("synthetic", **keywords)


def test_users_differ_in_volume_and_their_behaviors_cover_two_years() -> None:
    world = simulate(seed=0, user_count=300, behavior_count=36_000)
    per_user = np.bincount(world.user)
    assert (per_user < 20).sum() >= 5
    assert (per_user > 400).sum() >= 5
    days = (world.time.max() - world.time.min()) / 86_400
    assert 660 < days < 731


def test_a_like_follows_from_the_taste_of_the_moment_and_tastes_drift() -> None:
    world = simulate(seed=0, user_count=300, behavior_count=36_000)
    liked = world.rating > 3
    assert set(np.unique(world.rating)) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert 0.5 < liked.mean() < 0.6
    assert roc_auc_score(liked, world.affinity) > 0.88
    assert drift_of_likes(world.user, world.films.membership[world.item], liked) > 0.5


def drift_of_likes(user: np.ndarray, categories: np.ndarray, liked: np.ndarray) -> float:
    """Return how much less alike a user's first and last 25 likes are than the halves of the first 25 (0 to 1)."""
    within, across = [], []
    for one in np.unique(user):
        rows = np.flatnonzero(user == one)
        if len(rows) >= 150:
            signed = categories[rows] * np.where(liked[rows], 1.0, -1.0)[:, None]
            first, odd, even, last = (
                signed[:25].sum(0),
                signed[:25:2].sum(0),
                signed[1:25:2].sum(0),
                signed[-25:].sum(0),
            )
            within.append(np.corrcoef(odd, even)[0, 1])
            across.append(np.corrcoef(first, last)[0, 1])
    return float(np.mean(within) - np.mean(across)) / float(np.mean(within))


def test_items_have_distinct_titles_one_to_three_categories_a_decade_and_a_creator() -> None:
    items = read_data_set("synthetic", users=3).items.to_pydict()
    assert len(set(items["title"])) == ITEM_COUNT
    assert {len(names) for names in items["categories"]} == {1, 2, 3}
    assert all(len(set(names)) == len(names) for names in items["categories"])
    assert len({name for names in items["categories"] for name in names}) == 12
    assert set(items["period"]) <= {"1960s", "1970s", "1980s", "1990s", "2000s", "2010s", "2020s"}
    assert all(items["creator"])


def test_users_have_a_profile_an_age_group_and_a_gender() -> None:
    users = read_data_set("synthetic", users=50).users.to_pydict()
    for profile, age, gender in zip(users["profile"], users["age_group"], users["gender"], strict=True):
        assert profile.startswith(age)
        assert profile.endswith(gender)
