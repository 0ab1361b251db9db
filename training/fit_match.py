"""Fit the scales in which evidence is compared with candidates, on the training part alone."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from liber_feast.evidence_rows import UserEvidence
from liber_feast.inputs import EncodedItems, EncodedUsers, InputSpec


def with_count_scale(spec: InputSpec, *, evidence: UserEvidence | None, train: npt.NDArray[np.int64]) -> InputSpec:
    """Return the spec with the scale of the counts of behaviors in the memories of `train`, those that have any."""
    if spec.match is None or evidence is None:
        return spec
    counts = evidence.counts()[train]
    counts = np.log1p(counts[counts > 0])
    if not len(counts):
        return spec
    found = replace(
        spec.match, memory_count_mean=float(counts.mean()), memory_count_deviation=float(counts.std()) or 1.0
    )
    return replace(spec, match=found)


def with_match_scales(
    spec: InputSpec, *, users: EncodedUsers, items: EncodedItems, train: npt.NDArray[np.int64]
) -> InputSpec:
    """Return the spec with the deviations of the dot products of the samples `train`: row q of `users` and `items`."""
    if spec.match is None:
        return spec
    found = spec.matches(users, items=items, user_rows=train, item_rows=train).astype(np.float64)
    window, *memory = (float(column.std()) or 1.0 for column in found.T)
    scales = replace(spec.match, window_deviation=window, memory_deviation=memory[0] if memory else 1.0)
    return replace(spec, match=scales)
