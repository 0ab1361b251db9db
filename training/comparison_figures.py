"""The figures of a comparison: what each feature set is worth to each backbone, by block, seed and history length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from liber_feast.behavior import USER
from training.comparison import BASE, Comparison, Fits, Fitted, Task
from training.data import BEHAVIOR_COUNT, Features, Samples
from training.metrics import quality, within_user_auc
from training.protocol import FINAL, history_groups
from training.statistics import Pair, auc_gains, bootstrap_p, paired_t_test, user_bootstrap

NO_FIGURE = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Of one feature set, block and backbone, a value a seed."""

    auc: npt.NDArray[np.float64]
    log_loss: npt.NDArray[np.float64]
    within_user_auc: npt.NDArray[np.float64]
    by_history: Mapping[str, npt.NDArray[np.float64]]
    """AUC by group of history length; NaN where a group has one class only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tested:
    """What is known of the samples of a block's test slice."""

    labels: npt.NDArray[np.bool_]
    users: npt.NDArray[np.int64]
    groups: Mapping[str, npt.NDArray[np.bool_]]


class Table:
    """All figures of a comparison."""

    def __init__(self, fits: Fits, *, found: Mapping[Task, Fitted]) -> None:
        self.comparison: Comparison = fits.comparison
        self._found = found
        self.parts = tested_parts(fits.samples[BASE], fits=fits)
        self.folds = [name for name in self.parts if name != FINAL]
        self._figures: dict[tuple[str, Features, str], Figures] = {}

    def logits(self, backbone: str, features: Features, block: str) -> npt.NDArray[np.float32]:
        """Return (seeds, samples)."""
        seeds = range(self.comparison.seeds)
        tasks = [Task(features=features, block=block, backbone=backbone, seed=seed) for seed in seeds]
        return np.stack([self._found[task].logits for task in tasks])

    def figures(self, backbone: str, features: Features, block: str) -> Figures:
        """Return the figures of one feature set on one block."""
        key = (backbone, features, block)
        if key not in self._figures:
            self._figures[key] = figures_of(self.logits(backbone, features, block), part=self.parts[block])
        return self._figures[key]

    def pair(self, backbone: str, features: Features, block: str) -> Pair:
        """Return a feature set beside the baseline."""
        part = self.parts[block]
        return Pair(
            labels_B=part.labels,
            users_B=part.users,
            base_SB=self.logits(backbone, BASE, block),
            other_SB=self.logits(backbone, features, block),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures of every backbone as JSON values."""
        return {backbone: self._backbone(backbone) for backbone in self.comparison.backbones}

    def _backbone(self, backbone: str) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if FINAL in self.parts:
            base = self.figures(backbone, BASE, FINAL)
            row |= {
                "base_auc": mean(base.auc),
                "base_log_loss": mean(base.log_loss),
                "base_within_user_auc": mean(base.within_user_auc),
            }
        row |= {
            "base_folds_auc": mean([self.figures(backbone, BASE, fold).auc for fold in self.folds]),
            "base_folds_log_loss": mean([self.figures(backbone, BASE, fold).log_loss for fold in self.folds]),
        }
        for name in self.comparison.variants:
            final = self._final(backbone, name) if FINAL in self.parts else {}
            row[name] = {**final, **self._folds(backbone, name)}
        return row

    def _final(self, backbone: str, features: Features) -> dict[str, Any]:
        base, found = self.figures(backbone, BASE, FINAL), self.figures(backbone, features, FINAL)
        resampled = user_bootstrap([self.pair(backbone, features, FINAL)])
        gain = mean(found.auc) - mean(base.auc)
        return {
            "auc": mean(found.auc),
            "log_loss": mean(found.log_loss),
            "auc_gain": gain,
            "log_loss_gain": mean(found.log_loss) - mean(base.log_loss),
            "relative_improvement": gain / mean(base.auc),
            "t_test_p": paired_t_test(found.auc - base.auc),
            "user_bootstrap_p": bootstrap_p(resampled),
            "user_bootstrap_deviation": float(resampled.std()),
            "within_user_auc": mean(found.within_user_auc),
            "within_user_auc_gain": mean(found.within_user_auc - base.within_user_auc),
            "auc_gain_by_history": {name: gain_in(name, [(found, base)]) for name in found.by_history},
        }

    def _folds(self, backbone: str, features: Features) -> dict[str, Any]:
        pairs = [self.pair(backbone, features, fold) for fold in self.folds]
        pooled = user_bootstrap(pairs)
        by_fold = np.stack([auc_gains(pair) for pair in pairs])
        folded = [(self.figures(backbone, features, fold), self.figures(backbone, BASE, fold)) for fold in self.folds]
        return {
            "folds_auc_gain": mean(by_fold),
            "folds_auc_gain_by_fold": by_fold.mean(axis=1).tolist(),
            "folds_log_loss_gain": mean([one.log_loss - other.log_loss for one, other in folded]),
            "folds_within_user_auc_gain": mean([one.within_user_auc - other.within_user_auc for one, other in folded]),
            "folds_p_value": paired_t_test(by_fold.mean(axis=0)),
            "folds_user_bootstrap_p": bootstrap_p(pooled),
            "folds_user_bootstrap_deviation": float(pooled.std()),
            "folds_auc_gain_by_history": {name: gain_in(name, folded) for name in folded[0][0].by_history},
        }


def tested_parts(samples: Samples, *, fits: Fits) -> dict[str, Tested]:
    """Return the test slice of every block."""
    users = np.unique(np.array(samples.table[USER].to_pylist()), return_inverse=True)[1].astype(np.int64)
    counts = np.nan_to_num(samples.table[BEHAVIOR_COUNT].to_numpy()).astype(np.int64)
    return {
        name: Tested(
            labels=samples.labels[block.split.test],
            users=users[block.split.test],
            groups=history_groups(counts[block.split.test]),
        )
        for name, block in fits.blocks.items()
    }


def figures_of(logits: npt.NDArray[np.float32], *, part: Tested) -> Figures:
    """Return the figures of logits (seeds, samples)."""
    every = [quality(part.labels, logits=one) for one in logits]
    return Figures(
        auc=np.array([one.auc for one in every]),
        log_loss=np.array([one.log_loss for one in every]),
        within_user_auc=np.array([within_user_auc(part.labels, logits=one, users=part.users) for one in logits]),
        by_history={
            name: np.array([_auc(part.labels[rows], one[rows]) for one in logits]) for name, rows in part.groups.items()
        },
    )


def gain_in(group: str, pairs: Sequence[tuple[Figures, Figures]]) -> float | None:
    """Return the mean gain in AUC in a group of history length, over the blocks where it has both classes."""
    gains = [found.by_history[group] - base.by_history[group] for found, base in pairs]
    known = [gain for gain in gains if np.isfinite(gain).all()]
    return mean(known) if known else None


def mean(values: Any) -> float:
    """Return the mean of all values."""
    return float(np.mean(values))


def _auc(labels: npt.NDArray[np.bool_], logits: npt.NDArray[np.float32]) -> float:
    return float(roc_auc_score(labels, logits)) if 0 < labels.sum() < len(labels) else NO_FIGURE
