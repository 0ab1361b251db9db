"""DIN's attention over the behaviors (Zhou et al. 2018, section 4.3).

Shape suffixes: B samples in the batch, N behaviors, C width of an item's fields, E embedding width,
W = C + E width of a behavior, H hidden width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.backbones.behaviors import Behaviors, beside
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

    def forward(self, candidate_BC: Tensor, wanted_E: Tensor, behaviors: Behaviors, mask_BN: Tensor) -> Tensor:
        """Return the pooled behaviors (B, W); zeros where a sample has none.

        A candidate c is `candidate_BC` beside `wanted_E`, which stands for the feedback that is yet to come.
        """
        item_BNC = behaviors.item_fields()
        weight_BN = self.unit[1:](self._first(candidate_BC, wanted_E, behaviors, item_BNC)).squeeze(-1)
        if self.softmax:
            weight_BN = weight_BN.masked_fill(~mask_BN, torch.finfo(weight_BN.dtype).min).softmax(dim=-1)
        weight_BN = weight_BN * mask_BN
        pooled = (torch.einsum("bn,bnc->bc", weight_BN, part) for part in (item_BNC, behaviors.told))
        item_BC, told_B3 = pooled
        return torch.cat([item_BC, told_B3 @ behaviors.feedback_3E], dim=-1)

    def _first(self, candidate_BC: Tensor, wanted_E: Tensor, behaviors: Behaviors, item_BNC: Tensor) -> Tensor:
        """Return the first linear layer of [c, h, c - h, c * h], (B, N, hidden), without building that input.

        Its weights are taken apart: what sees c alone is done once a sample, what sees h alone once an item, and so is
        what sees the feedback, which the candidate's `wanted_E` meets in the product.
        """
        first = cast("nn.Linear", self.unit[0])
        c_HW, h_HW, difference_HW, product_HW = first.weight.chunk(4, dim=1)
        product_HC, product_HE = product_HW.split([candidate_BC.shape[1], len(wanted_E)], dim=1)
        of_candidate_BH = F.linear(beside(candidate_BC, wanted_E), c_HW + difference_HW, first.bias)
        of_product_BNH = F.linear(candidate_BC[:, None] * item_BNC, product_HC)
        alone_HW = h_HW - difference_HW + F.pad(product_HE * wanted_E, (candidate_BC.shape[1], 0))
        of_behavior_BNH = behaviors.linear(alone_HW)
        return of_candidate_BH[:, None] + of_behavior_BNH + of_product_BNH
