"""Dropout of the long-term memory: a step sees some of its samples as of users without a sealed partition.

A fit that sees the memory of nearly every sample leaves to it what the recent behaviors say as well, which then lacks
for users who have no partition yet.
"""

from copy import copy

import torch
from torch import Tensor

from liber_feast.encoded import MEMORY_COLUMNS
from training.backbones.fusing import LENGTHS


def hide_memory(batch: dict[str, Tensor], *, share: float, has_evidence: bool) -> dict[str, Tensor]:
    """Return a batch without the memory of a `share` of its samples, by torch's seed.

    They are as those of users without a partition: no vectors and, where the batch `has_evidence`, zeros among its
    dense numbers.
    """
    dense = batch["dense"]
    is_hidden_B = torch.rand(len(dense), device=dense.device) < share
    hidden = copy(batch)  # of its own class: that of a step makes some tensors when they are asked for
    if has_evidence:
        hidden["dense"] = dense.clone()
        for column in MEMORY_COLUMNS:
            hidden["dense"][:, column].masked_fill_(is_hidden_B, 0)
    for name in ("sealed", "partition_there"):
        if name in batch:
            hidden[name] = batch[name] & ~is_hidden_B[:, None]
    if LENGTHS in batch:
        hidden[LENGTHS] = batch[LENGTHS].masked_fill(is_hidden_B, 0)
    return hidden
