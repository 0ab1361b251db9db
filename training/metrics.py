"""How well probabilities tell likes from dislikes."""

from dataclasses import dataclass

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
