"""What the numbers of evidence are worth by themselves: a logistic regression on them, on the blocks of `compare`.

It takes seconds where backbones take hours, so that spaces of item texts, smoothings and further numbers can be ranked
before a backbone is fitted. It has no embeddings: its figures are no figures of a backbone.

| numbers | what |
| --- | --- |
| `baseline`, `evidence` | the dense numbers that every backbone gets with these features |
| `+ item` | and of the candidate the like rate and the count of the behaviors before the sample, of all users |
| `+ adjusted` | and of the window, with `evidence` of the memory too, how much more items were liked than before |

The last line of stdout is one JSON object: by numbers the AUC of each fold and of the final block.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from liber_feast.behavior import ITEM, USER
from liber_feast.errors import LiberError
from liber_feast.evidence_rows import LIKE_PRIOR, MEMORY_PRIOR
from liber_feast.fields import strings
from liber_feast.pit import as_of, key_codes
from training.data import BEHAVIOR_COUNT, Samples, load_samples
from training.fit import Prepared, prepare
from training.options import FitOptions
from training.protocol import FINAL, Block, blocks

Floats = npt.NDArray[np.float64]
ITEM_PRIOR = 5.0
"""Behaviors' worth of the like rate of all items that an item's is smoothed with."""
LIMIT = 5.0
"""Standardized numbers are cut at it."""
WINDOW_ROWS, BASE_COUNT = 20, 4


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--repo", type=Path, required=True, help="a feature repo that was materialized")
    parser.add_argument("--folds", type=int, default=3)
    given = parser.parse_args()
    try:
        samples = load_samples(given.repo, features="evidence")
        found = measure(samples, folds=given.folds)
    except LiberError as error:
        sys.exit(f"error: {error}")
    for name, aucs in found.items():
        folds = float(np.mean([value for block, value in aucs.items() if block != FINAL]))
        print(f"{name:32s} folds {folds:.4f}  final block {aucs[FINAL]:.4f}", file=sys.stderr)
    print(json.dumps({"repo": given.repo.name, "samples": len(samples.labels), "auc": found}))


def measure(samples: Samples, *, folds: int) -> dict[str, dict[str, float]]:
    """Return by set of numbers the AUC of each block."""
    options = FitOptions(sequence_length=WINDOW_ROWS)
    items, adjusted = item_numbers(samples), adjusted_numbers(samples)
    found: dict[str, dict[str, float]] = {}
    for block in blocks(samples.times, folds=folds):
        prepared = prepare(samples, options=options, split=block.split)
        for name, numbers in sets_of(prepared, items=items, adjusted=adjusted).items():
            found.setdefault(name, {})[block.name] = auc(numbers, labels=samples.labels, block=block)
        print(f"{block.name}: done", file=sys.stderr)
    return found


def sets_of(prepared: Prepared, *, items: Floats, adjusted: Floats) -> dict[str, Floats]:
    """Return the sets of numbers, each (Q, numbers)."""
    every = np.arange(len(prepared.labels))
    dense = prepared.spec.dense(prepared.users, items=prepared.items, user_rows=every, item_rows=every)
    # The like rate and the count of the memory stand between the window's numbers and the two matches.
    baseline = np.concatenate([dense[:, : BASE_COUNT - 1], dense[:, -2:-1]], axis=1).astype(np.float64)
    evidence = dense.astype(np.float64)
    window = adjusted[:, :1]
    return {
        "baseline": baseline,
        "evidence": evidence,
        "baseline + item": np.hstack([baseline, items]),
        "evidence + item": np.hstack([evidence, items]),
        "baseline + item + adjusted": np.hstack([baseline, items, window]),
        "evidence + item + adjusted": np.hstack([evidence, items, adjusted]),
    }


def auc(numbers: Floats, *, labels: npt.NDArray[np.bool_], block: Block) -> float:
    """Return the AUC on the test slice of a regression that is fitted on the train slice."""
    train, test = block.split.train, block.split.test
    mean, deviation = numbers[train].mean(axis=0), numbers[train].std(axis=0)
    standard = np.clip((numbers - mean) / np.where(deviation > 0, deviation, 1), -LIMIT, LIMIT)
    model = LogisticRegression(max_iter=1_000).fit(standard[train], labels[train])
    return float(roc_auc_score(labels[test], model.decision_function(standard[test])))


def item_numbers(samples: Samples) -> Floats:
    """Return (Q, 2): the smoothed like rate of each candidate, and its log count, strictly before the sample."""
    like_rate, count = before(samples)
    return np.stack([like_rate, np.log1p(count)], axis=1)


def adjusted_numbers(samples: Samples) -> Floats:
    """Return (Q, 2): over the window and over the memory the mean of liked - like rate of the item before it."""
    assert samples.evidence is not None, "these samples have evidence"
    user, _ = key_codes([_ids(samples, USER)], [_ids(samples, USER)])
    order = np.lexsort((samples.times, user))
    total = np.append(0.0, np.cumsum((samples.labels - before(samples)[0])[order]))
    first = np.searchsorted(user[order], user)
    seen = np.nan_to_num(samples.table[BEHAVIOR_COUNT].to_numpy()).astype(np.int64)
    window, memory = np.minimum(seen, WINDOW_ROWS), samples.evidence.counts().astype(np.int64)
    of_window = (total[first + seen] - total[first + seen - window]) / (window + LIKE_PRIOR)
    # Partitions are sealed in the order of behaviors, so a memory of n behaviors is the first n.
    of_memory = (total[first + memory] - total[first]) / (memory + MEMORY_PRIOR)
    return np.stack([of_window, of_memory], axis=1)


def before(samples: Samples) -> tuple[Floats, Floats]:
    """Return the smoothed like rate (Q,) of each sample's item strictly before it, and the count of its behaviors."""
    item, _ = key_codes([_ids(samples, ITEM)], [_ids(samples, ITEM)])
    order = np.lexsort((samples.times, item))
    groups, liked = item[order], samples.labels[order]
    last = as_of(groups, samples.times[order], query_groups=item, query_times=samples.times - 1)
    starts = np.searchsorted(groups, item)
    ends = np.where(last >= 0, last + 1, starts)
    total, count = np.append(0, np.cumsum(liked)), (ends - starts).astype(np.float64)
    return (total[ends] - total[starts] + ITEM_PRIOR * liked.mean()) / (count + ITEM_PRIOR), count


def _ids(samples: Samples, name: str) -> pa.Array:
    return strings(samples.table, name).cast(pa.large_string())


if __name__ == "__main__":
    main()
