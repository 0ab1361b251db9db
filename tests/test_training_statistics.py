"""Statistics against scipy, scikit-learn and cases whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from liber_feast.errors import ConfigError
from training.metrics import within_user_auc
from training.statistics import Pair, auc_gains, bootstrap_p, paired_t_test, user_bootstrap, weighted_auc

SEEDS, USERS = 3, 40


def pair(*, gain: float, seed: int = 0, users: int = USERS, rows: int = 50) -> Pair:
    """Return fits of which the second ranks likes higher by `gain` deviations, for every user alike."""
    random = np.random.default_rng(seed)
    labels = random.random(users * rows) < 0.5
    noise = random.normal(size=(SEEDS, users * rows))
    return Pair(
        labels_B=labels,
        users_B=np.repeat(np.arange(users), rows),
        base_SB=noise + labels,
        other_SB=noise + labels * (1 + gain) + random.normal(size=noise.shape) * 0.1,
    )


@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=8).filter(lambda gains: np.ptp(gains) > 1e-6))
def test_the_t_test_is_scipys_of_the_two_series(gains: list[float]) -> None:
    base = np.linspace(0.7, 0.8, len(gains))
    expected = stats.ttest_rel(base + np.array(gains), base).pvalue
    assert paired_t_test(gains) == pytest.approx(expected, rel=1e-5)


def test_the_t_test_of_a_known_case() -> None:
    assert paired_t_test([1.0, 2.0, 3.0]) == pytest.approx(0.0741799, abs=1e-6)  # t = 2 / (1 / sqrt(3)), 2 degrees


@pytest.mark.parametrize(
    ("gains", "p"),
    [([0.0, 0.0, 0.0], 1.0), ([0.01, 0.01], 0.0), ([0.3 - 0.2, 0.1, 0.7 - 0.6], 0.0), ([1e-17, 0.0], 1.0)],
)
def test_differences_that_only_rounding_tells_apart_have_a_p_value(gains: list[float], p: float) -> None:
    assert paired_t_test(gains) == p


def test_one_seed_has_no_t_test() -> None:
    with pytest.raises(ConfigError, match="needs 2 seeds or more; there are 1"):
        paired_t_test([0.01])


@given(
    scores=st.lists(st.integers(-3, 3), min_size=4, max_size=40),
    weights=st.lists(st.integers(0, 3), min_size=40, max_size=40),
    seed=st.integers(0, 99),
)
def test_the_weighted_auc_is_scikit_learns_also_with_ties(scores: list[int], weights: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).random(len(scores)) < 0.5
    weight = np.array(weights[: len(scores)], np.float64)
    found = weighted_auc(labels, scores=np.array(scores, np.float32), weights_RB=weight[None])[0]
    if not weight[labels].sum() or not weight[~labels].sum():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))


def test_gains_are_the_differences_of_auc() -> None:
    one = pair(gain=0.3)
    expected = [
        roc_auc_score(one.labels_B, other) - roc_auc_score(one.labels_B, base)
        for base, other in zip(one.base_SB, one.other_SB, strict=True)
    ]
    np.testing.assert_allclose(auc_gains(one), expected)


def test_the_bootstrap_over_users_is_one_over_resampled_rows_of_each() -> None:
    one = pair(gain=0.2, users=8, rows=20)
    found = user_bootstrap([one], resamples=30, seed=5)
    drawn = np.random.default_rng(5).integers(8, size=(30, 8))
    for users, gain in zip(drawn, found, strict=True):
        rows = np.concatenate([np.flatnonzero(one.users_B == user) for user in users])
        expected = auc_gains(
            Pair(
                labels_B=one.labels_B[rows],
                users_B=one.users_B[rows],
                base_SB=one.base_SB[:, rows],
                other_SB=one.other_SB[:, rows],
            )
        )
        assert gain == pytest.approx(expected.mean())


def test_the_bootstrap_has_the_deviation_that_scipys_bootstrap_of_user_means_has() -> None:
    # With one sample of each class per user and one score all over, the gain of AUC is nearly a mean over users.
    random = np.random.default_rng(3)
    gains = random.normal(0.1, 0.3, 200)
    labels = np.tile([True, False], 200)
    base = np.zeros((1, 400))
    other = base.copy()
    other[0, ::2] = gains
    found = user_bootstrap(
        [Pair(labels_B=labels, users_B=np.repeat(np.arange(200), 2), base_SB=base, other_SB=other)], resamples=2_000
    )
    wins = np.where(gains > 0, 0.5, -0.5)
    expected = stats.bootstrap((wins,), np.mean, n_resamples=2_000, rng=random, method="basic").standard_error
    assert found.std() == pytest.approx(expected, rel=0.1)
    assert found.mean() == pytest.approx(wins.mean(), abs=3 * expected)


def test_a_gain_that_all_users_have_is_significant_and_none_is_not() -> None:
    assert bootstrap_p(user_bootstrap([pair(gain=0.3)])) < 0.01
    nothing = pair(gain=0.0)
    assert bootstrap_p(user_bootstrap([nothing])) > 0.05


def test_a_gain_that_one_of_a_few_users_has_is_not_significant() -> None:
    one = pair(gain=0.0, users=6)
    other = one.other_SB.copy()
    mine = one.users_B == 0
    other[:, mine] += 2.0 * one.labels_B[mine]
    lucky = Pair(labels_B=one.labels_B, users_B=one.users_B, base_SB=one.base_SB, other_SB=other)
    assert auc_gains(lucky).mean() > 0.02
    assert paired_t_test(auc_gains(lucky)) < 0.05  # what seeds alone would call a gain
    assert bootstrap_p(user_bootstrap([lucky])) > 0.05


def test_pooled_pairs_resample_the_same_users() -> None:
    one = pair(gain=0.2)
    np.testing.assert_allclose(user_bootstrap([one, one], resamples=20), user_bootstrap([one], resamples=20))


def test_resamples_of_one_class_are_left_out() -> None:
    labels = np.array([True, True, False])
    scores = np.array([[0.1, 0.2, 0.3]])
    one = Pair(labels_B=labels, users_B=np.array([0, 1, 2]), base_SB=scores, other_SB=scores)
    found = user_bootstrap([one], resamples=100)
    assert 0 < len(found) < 100
    assert np.isfinite(found).all()


def test_a_p_value_is_never_zero() -> None:
    assert bootstrap_p(np.full(999, 0.1)) == pytest.approx(0.002)
    assert bootstrap_p(np.zeros(999)) == 1.0


@given(seed=st.integers(0, 200), users=st.integers(1, 6))
def test_the_auc_within_users_is_the_mean_of_theirs(seed: int, users: int) -> None:
    random = np.random.default_rng(seed)
    of = random.integers(0, users, 30)
    labels, logits = random.random(30) < 0.5, random.integers(-2, 3, 30).astype(np.float32)
    own = [
        (roc_auc_score(labels[of == user], logits[of == user]), (of == user).sum())
        for user in range(users)
        if 0 < labels[of == user].sum() < (of == user).sum()
    ]
    found = within_user_auc(labels, logits=logits, users=of)
    if own:
        assert found == pytest.approx(np.average([auc for auc, _ in own], weights=[count for _, count in own]))
    else:
        assert np.isnan(found)
