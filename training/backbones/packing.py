"""The order in which a recurrence goes through a batch's behaviors.

Shape suffixes: B samples in the batch, N behaviors, P packed rows, Q those of all steps but the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.backbones.rows import take_rows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packing:
    """Behaviors in order of their step, within a step the samples with the longest histories first.

    A sample's behaviors stand at the beginning of its row of the mask. One without behaviors has a packed row all the
    same, which is padding.
    """

    rows_P: Tensor
    """Row `b * N + n` of each packed row."""
    there_P: Tensor
    """Which packed rows are behaviors and no padding."""
    counts: Sequence[int]
    """Packed rows of each step; no step has more than the one before."""
    last_B: Tensor
    """The packed row of each sample's last step."""
    before_Q: Tensor
    """For every packed row but those of the first step, that of the same sample one step before."""
    length: int
    """N."""

    def take(self, values: Tensor) -> Tensor:
        """Return (P, ...) of (B, N, ...)."""
        return values.flatten(0, 1).index_select(0, self.rows_P)

    def take_samples(self, values: Tensor) -> Tensor:
        """Return (P, ...) of (B, ...): to each packed row its sample's."""
        return take_rows(values, self.rows_P // self.length)

    def softmax(self, score_P: Tensor) -> Tensor:
        """Return the softmax over each sample's behaviors, (P,); padding has 0."""
        lowest = torch.finfo(score_P.dtype).min
        score = score_P.new_full((len(self.last_B) * self.length,), lowest)
        score = score.index_copy(0, self.rows_P, score_P.masked_fill(~self.there_P, lowest))
        weight = score.view(-1, self.length).softmax(dim=-1)
        return weight.flatten().index_select(0, self.rows_P) * self.there_P


def pack(mask_BN: Tensor) -> Packing:
    """Return the packing of the behaviors of a mask.

    On a CPU padding is left out. On a GPU it stays in, with every sample in every step, because that costs less than
    waiting for the lengths; so it does while a model is exported, whose steps must not depend on its inputs.
    """
    return _pack_all(mask_BN) if mask_BN.is_cuda or torch.compiler.is_compiling() else _pack_behaviors(mask_BN)


def _pack_all(mask_BN: Tensor) -> Packing:
    batch_size, length = mask_BN.shape
    rows_P = torch.arange(batch_size * length, device=mask_BN.device)
    return Packing(
        rows_P=rows_P.view(batch_size, length).T.flatten(),
        there_P=mask_BN.T.flatten(),
        counts=[batch_size] * length,
        last_B=rows_P[-batch_size:],
        before_Q=rows_P[:-batch_size],
        length=length,
    )


def _pack_behaviors(mask_BN: Tensor) -> Packing:
    batch_size, length = mask_BN.shape
    steps_B = mask_BN.sum(dim=1).clamp(min=1)
    order_B = steps_B.argsort(descending=True, stable=True)
    worked_NB = torch.arange(length)[:, None] < steps_B[order_B]
    step_P, place_P = worked_NB.nonzero(as_tuple=True)
    counts_N = worked_NB.sum(dim=1)
    starts_N = counts_N.cumsum(dim=0) - counts_N
    rows_P = order_B[place_P] * length + step_P
    return Packing(
        rows_P=rows_P,
        there_P=mask_BN.flatten()[rows_P],
        counts=[count for count in counts_N.tolist() if count],
        last_B=starts_N[steps_B - 1] + order_B.argsort(),
        before_Q=starts_N[step_P[batch_size:] - 1] + place_P[batch_size:],
        length=length,
    )
