"""Whether one set of fits is better than another: paired over seeds, and by bootstrap over users.

Seeds tell how much the figures depend on the start of a fit, users how much they depend on who happens to be in a test
part: a final block can have a hundred users, and one of them a quarter of its samples. Neither stands for the other.

Shape suffixes: S seeds, B samples of a test part, U users, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from liber_feast.errors import ConfigError

LEAST_PAIRS = 2
"""A t-test needs a variance."""
RESAMPLES = 1_000
ROUNDING = 1e-12
"""Gains no further apart than this are the same: they are differences of rounded AUCs and log losses."""
WEIGHTS_AT_ONCE = 5_000_000
"""Weights of samples that are held at once; bounds the memory."""

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pair:
    """Two sets of fits, tested on the same samples: seed s of one is seed s of the other."""

    labels_B: npt.NDArray[np.bool_]
    users_B: npt.NDArray[np.int64]
    """0 to U - 1, the same numbers in every pair that is pooled."""
    base_SB: Scores
    """Logits."""
    other_SB: Scores


def paired_t_test(gains: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t-test that the mean of paired differences is zero.

    Raises:
        ConfigError: fewer than two pairs, which have no variance.
    """
    values = np.asarray(gains, np.float64)
    if len(values) < LEAST_PAIRS:
        raise ConfigError(f"a paired t-test needs 2 seeds or more; there are {len(values)}. Use --seeds 2 or more.")
    if np.ptp(values) < ROUNDING:
        return 1.0 if abs(values[0]) < ROUNDING else 0.0
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def auc_gains(pair: Pair) -> Floats:
    """Return the gain in AUC of each seed (S,)."""
    ones = np.ones((1, len(pair.labels_B)))
    gains = [
        weighted_auc(pair.labels_B, scores=other, weights_RB=ones)
        - weighted_auc(pair.labels_B, scores=base, weights_RB=ones)
        for base, other in zip(pair.base_SB, pair.other_SB, strict=True)
    ]
    return np.concatenate(gains)


def user_bootstrap(pairs: Sequence[Pair], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the gain in AUC, meaned over seeds and over `pairs`, in each resample of the users (R,).

    A resample draws as many users as there are over all pairs, with replacement, and takes all samples of each as often
    as the user was drawn. A resample in which some pair has one class only is left out.
    """
    random = np.random.default_rng(seed)
    user_count = 1 + max(int(pair.users_B.max(initial=-1)) for pair in pairs)
    present = np.unique(np.concatenate([pair.users_B for pair in pairs]))
    at_once = max(1, WEIGHTS_AT_ONCE // max(len(pair.labels_B) for pair in pairs))
    parts = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = present[random.integers(len(present), size=(count, len(present)))]
        weights_RU = np.stack([np.bincount(users, minlength=user_count) for users in drawn]).astype(np.float64)
        parts.append(np.mean([_gains(pair, weights_RU=weights_RU) for pair in pairs], axis=0))
    gains: Floats = np.concatenate(parts)
    return gains[np.isfinite(gains)]


def bootstrap_p(gains: Floats) -> float:
    """Return the two-sided p-value that the gain is zero: how often resamples fall on the other side of it.

    Never 0: with R resamples it is at least 2 / (R + 1).
    """
    side = min(int((gains <= 0).sum()), int((gains >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(gains) + 1))


def weighted_auc(labels_B: npt.NDArray[np.bool_], *, scores: Scores, weights_RB: Floats) -> Floats:
    """Return the AUC (R,) of `scores` (B,) where sample b counts `weights_RB[r, b]` times; NaN with one class only."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # ties share their place
    weights = weights_RB[:, order]
    likes_RG = np.add.reduceat(weights * labels_B[order], starts, axis=1)
    others_RG = np.add.reduceat(weights * ~labels_B[order], starts, axis=1)
    below_RG = np.cumsum(others_RG, axis=1) - others_RG / 2
    pairs_R = likes_RG.sum(axis=1) * others_RG.sum(axis=1)
    won_R = (likes_RG * below_RG).sum(axis=1)
    auc: Floats = np.divide(won_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)
    return auc


def _gains(pair: Pair, *, weights_RU: Floats) -> Floats:
    weights_RB = weights_RU[:, pair.users_B]
    gains = [
        weighted_auc(pair.labels_B, scores=other, weights_RB=weights_RB)
        - weighted_auc(pair.labels_B, scores=base, weights_RB=weights_RB)
        for base, other in zip(pair.base_SB, pair.other_SB, strict=True)
    ]
    mean: Floats = np.mean(gains, axis=0)
    return mean
