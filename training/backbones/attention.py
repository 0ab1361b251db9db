"""DIN's attention over the behaviors (Zhou et al. 2018, section 4.3).

Shape suffixes: B samples in the batch, N behaviors, W width of a behavior, H hidden width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.backbones.layers import Activation, mlp


class DINAttention(nn.Module):
    """Pool behaviors by how much each one matters for the candidate.

    The activation unit sees [c, h, c - h, c * h]. Its weights are not normalized (the paper keeps the intensity of
    interest) unless `softmax` is set. A masked behavior has weight 0.
    """

    def __init__(
        self, width: int, *, hidden: Sequence[int] = (64,), activation_name: Activation = "dice", softmax: bool = False
    ) -> None:
        super().__init__()
        self.unit = mlp(4 * width, hidden=hidden, activation_name=activation_name)
        self.softmax = softmax

    def forward(self, candidate_BW: Tensor, history_BNW: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the pooled behaviors (B, W); zeros where a sample has none."""
        weight_BN = self.unit[1:](self._first(candidate_BW, history_BNW)).squeeze(-1)
        if self.softmax:
            weight_BN = weight_BN.masked_fill(~mask_BN, torch.finfo(weight_BN.dtype).min).softmax(dim=-1)
        weight_BN = weight_BN * mask_BN
        return torch.einsum("bn,bnw->bw", weight_BN, history_BNW)

    def _first(self, candidate_BW: Tensor, history_BNW: Tensor) -> Tensor:
        """Return the first linear layer of [c, h, c - h, c * h], (B, N, hidden), without building that input.

        Its weights are taken apart: what sees c alone is done once a sample, not once a behavior.
        """
        first = cast("nn.Linear", self.unit[0])
        c_HW, h_HW, difference_HW, product_HW = first.weight.chunk(4, dim=1)
        of_candidate_BH = F.linear(candidate_BW, c_HW + difference_HW, first.bias)
        of_history_BNH = F.linear(history_BNW, h_HW - difference_HW)
        return of_candidate_BH[:, None] + of_history_BNH + F.linear(candidate_BW[:, None] * history_BNW, product_HW)
