"""Split samples by global time: train, then validation, then test."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liber_feast.errors import DataSetError

TEST_SHARE, VALIDATION_SHARE = 0.1, 0.1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Positions of the samples of each part, in order of time; no time is in two parts."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    def parts(self) -> dict[str, npt.NDArray[np.int64]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def split_by_time(times: npt.NDArray[np.int64]) -> Split:
    """Return the first 80 % of the samples by time, the next 10 % and the last 10 %.

    Samples of one time stay together, in the later part: nothing is trained on that happens when the test begins.

    Raises:
        DataSetError: too few samples or times for three parts.
    """
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    count = len(ordered)
    cuts = [int(count * (1 - TEST_SHARE - VALIDATION_SHARE)), int(count * (1 - TEST_SHARE))]
    first, second = (int(np.searchsorted(ordered, ordered[cut], side="left")) if count else 0 for cut in cuts)
    if not 0 < first < second:
        raise DataSetError(
            f"{count} samples at {len(np.unique(times))} times cannot be split by time into train, validation and test."
            " Load more behaviors."
        )
    return Split(train=order[:first], validation=order[first:second], test=order[second:])


def check_classes(labels: npt.NDArray[np.bool_], *, split: Split, like_above: float, block: str = "") -> None:
    """Check that every part has likes and dislikes; a split may have no test part.

    Raises:
        DataSetError: a part has one class only; the message names it, and the `block`.
    """
    for name, rows in split.parts().items():
        liked = int(labels[rows].sum())
        if liked in {0, len(rows)} and not (name == "test" and not len(rows)):
            raise DataSetError(
                f"the {name} part{block and f' of {block}'} has one class only: {liked} likes among {len(rows)} samples"
                f" (a like is a rating above {like_above:g}). Set `behavior.like_above` in the engine block, or load"
                " more behaviors."
            )
