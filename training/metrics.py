"""How well probabilities tell likes from dislikes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss, roc_auc_score


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """AUC and log loss of one part of the samples."""

    auc: float
    log_loss: float


def quality(labels: npt.NDArray[np.bool_], *, logits: npt.NDArray[np.float32]) -> Quality:
    """Return the quality of `logits` (B,) for `labels` (B,), which hold both classes."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return Quality(auc=float(roc_auc_score(labels, logits)), log_loss=float(log_loss(labels, probabilities)))


def within_user_auc(
    labels: npt.NDArray[np.bool_], *, logits: npt.NDArray[np.float32], users: npt.NDArray[Any]
) -> float:
    """Return the mean AUC of each user's own samples, weighted by their number; NaN where no user has both classes.

    A user with one class only says nothing of it. That users differ in what they like on the whole does not count, as
    it does in the AUC over all samples.
    """
    if not len(labels):
        return float("nan")
    order = np.lexsort((logits, users))
    own, scores, liked = users[order], logits[order], labels[order]
    first = np.append(True, own[1:] != own[:-1])
    user = np.cumsum(first) - 1
    ties = np.cumsum(np.append(True, first[1:] | (scores[1:] != scores[:-1]))) - 1
    count = np.bincount(user)
    place = np.arange(len(own)) - (np.cumsum(count) - count)[user] + 1
    rank = (np.bincount(ties, weights=place) / np.bincount(ties))[ties]
    likes = np.bincount(user, weights=liked)
    others = count - likes
    both = (likes > 0) & (others > 0)
    if not both.any():
        return float("nan")
    won = np.bincount(user, weights=rank * liked) - likes * (likes + 1) / 2
    return float(np.average(won[both] / (likes * others)[both], weights=count[both]))
