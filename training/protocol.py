"""How figures are compared: rolling folds in time to choose on, and a final block that is looked at once.

Blocks are shares of the samples in order of time. Of each, all before the stop slice trains, the stop slice says when
to stop, and the test slice after it gives the figures:

| block | train | stop | test |
| --- | --- | --- | --- |
| fold k of n | the first 70 - 10 (n - k) % | the next 10 % | the next 10 % |
| final | the first 80 % | the next 10 % | the last 10 % |

So no fold sees the final test slice. Samples of one time stay together, in the later part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liber_feast.errors import ConfigError, DataSetError
from training.split import Split

FINAL = "final"
MOST_FOLDS = 7
TENTHS = 10
HISTORY_GROUPS: Mapping[str, tuple[int, int | None]] = {
    "0": (0, 0),
    "1-20": (1, 20),
    "21-100": (21, 100),
    "101-300": (101, 300),
    "over 300": (301, None),
}
"""Earlier behaviors of a sample's user, lowest and highest, by the name of the group."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Block:
    """What is trained and tested together."""

    name: str
    split: Split

    @property
    def is_final(self) -> bool:
        return self.name == FINAL


def blocks(times: npt.NDArray[np.int64], *, folds: int) -> tuple[Block, ...]:
    """Return the folds, oldest first, and the final block of samples at `times` (Q,).

    Raises:
        ConfigError: more than 7 folds, or fewer than 1.
        DataSetError: too few samples or times for a part of a block.
    """
    check_folds(folds)
    tested = [(f"fold {fold + 1}", TENTHS - 1 - folds + fold) for fold in range(folds)]
    order = np.argsort(times, kind="stable")
    cut = cuts(times[order])
    found = []
    for name, tenth in (*tested, (FINAL, TENTHS - 1)):
        stop, test, end = cut[tenth - 1 : tenth + 2]
        if not 0 < stop < test < end:
            raise DataSetError(
                f"{len(times)} samples at {len(np.unique(times))} times give {name} no train, stop and test part. Load"
                " more behaviors, or ask for fewer folds."
            )
        split = Split(train=order[:stop], validation=order[stop:test], test=order[test:end])
        found.append(Block(name=name, split=split))
    return tuple(found)


def check_folds(folds: int) -> None:
    """Check the number of folds.

    Raises:
        ConfigError: more than 7, or fewer than 1.
    """
    if not 1 <= folds <= MOST_FOLDS:
        raise ConfigError(f"{folds} folds: there can be 1 to {MOST_FOLDS}, each a tenth of the samples.")


def cuts(ordered: npt.NDArray[np.int64]) -> list[int]:
    """Return where each tenth of ascending times starts, and the end; a cut never parts samples of one time."""
    count = len(ordered)
    if not count:
        return [0] * (TENTHS + 1)
    starts = [int(np.searchsorted(ordered, ordered[count * tenth // TENTHS], side="left")) for tenth in range(TENTHS)]
    return [*starts, count]


def history_groups(counts: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return for each group of history lengths which of `counts` (B,), earlier behaviors of a user, are in it."""
    return {
        name: (counts >= low) & (counts <= (np.iinfo(np.int64).max if high is None else high))
        for name, (low, high) in HISTORY_GROUPS.items()
    }
