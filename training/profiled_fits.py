"""The fits on users' folds, and the figures of all judged samples together.

Shape suffixes: S seeds, J judged samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data import Features, Samples
from training.fit import fit, prepare
from training.metrics import quality, within_user_auc
from training.options import FitOptions
from training.split import Split
from training.statistics import Pair, auc_gains, bootstrap_p, paired_t_test, user_bootstrap

BASE: Features = "baseline"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """What the fits say of the judged samples, each by the fits that did not see its user's."""

    labels_J: npt.NDArray[np.bool_]
    users_J: npt.NDArray[np.str_]
    logits_SJ: Mapping[Features, npt.NDArray[np.float32]]

    def figures(self) -> dict[str, Any]:
        """Return by feature set AUC and log loss, means over the seeds, and what it gains over the baseline."""
        found: dict[str, Any] = {}
        for name, logits_SJ in self.logits_SJ.items():
            of_seeds = [quality(self.labels_J, logits=one) for one in logits_SJ]
            within = [within_user_auc(self.labels_J, logits=one, users=self.users_J) for one in logits_SJ]
            found[name] = {
                "auc": float(np.mean([one.auc for one in of_seeds])),
                "within_user_auc": float(np.mean(within)),
                "log_loss": float(np.mean([one.log_loss for one in of_seeds])),
                "auc_by_seed": [one.auc for one in of_seeds],
            }
            if name != BASE:
                found[name] |= self._gains(name)
        return found

    def _gains(self, name: Features) -> dict[str, Any]:
        pair = Pair(
            labels_B=self.labels_J,
            users_B=np.unique(self.users_J, return_inverse=True)[1],
            base_SB=self.logits_SJ[BASE],
            other_SB=self.logits_SJ[name],
        )
        gains = auc_gains(pair)
        has_variance = len(gains) > 1
        return {
            "auc_gain": float(gains.mean()),
            "seed_p_value": paired_t_test(gains.tolist()) if has_variance else None,
            "user_p_value": bootstrap_p(user_bootstrap([pair])),
        }


def judge(
    samples: Mapping[Features, Samples],
    *,
    folds: Sequence[Split],
    options: FitOptions,
    seeds: int,
    on_fit: Callable[[], object] = lambda: None,
) -> Judged:
    """Fit every feature set on every fold with every seed; the feature sets have the same samples in the same order.

    Raises:
        LiberError: see `prepare` and `fit`.
    """
    judged = np.sort(np.concatenate([split.test for split in folds]))
    logits = {name: np.empty((seeds, len(judged)), np.float32) for name in samples}
    for name, of_name in samples.items():
        for split in folds:
            prepared = prepare(of_name, options=options, split=split)
            for seed in range(seeds):
                fitted = fit(prepared, options=replace(options, seed=seed))
                logits[name][seed, np.searchsorted(judged, split.test)] = fitted.test_logits
                on_fit()
    first = next(iter(samples.values()))
    users = first.table["user_id"].to_numpy(zero_copy_only=False).astype(str)
    return Judged(labels_J=first.labels[judged], users_J=users[judged], logits_SJ=logits)
