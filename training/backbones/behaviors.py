"""Embedded behaviors: the item's fields side by side, and what the user thought of it.

Shape suffixes: B samples in the batch, N behaviors, I distinct items, C width of an item's fields, E embedding width,
W = C + E width of a behavior, H width of an output.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from liber_feast.encoded import DISTINCT, PLACES
from training.backbones.packing import Packing
from training.backbones.rows import take_rows

__all__ = ["DISTINCT", "FEEDBACK_COUNT", "HISTORY", "PLACES", "Batch", "Behaviors", "beside", "feedback"]

Batch = dict[str, Tensor]
HISTORY = ("history_codes", "history_numbers", "history_mask", "history_liked", "history_rating")
"""What a batch says of the behaviors, (B, N) and further axes."""
FEEDBACK_COUNT = 3  # there, liked, standardized rating


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Behaviors:
    """Behaviors (..., W), in parts: most items stand in a batch several times, and there are but three feedbacks.

    What is linear in a behavior is that of its item plus that of its feedback, so it is computed once for each.
    """

    items: Tensor
    """The fields of the distinct items (I, C); without `places` those of every behavior's item (..., C)."""
    places: Tensor | None
    """(...), or None."""
    told: Tensor
    """What is told of each behavior, (..., 3)."""
    feedback_3E: Tensor
    """The embedding of what can be told."""

    def packed(self, packing: Packing) -> "Behaviors":
        """Return the behaviors in the order of a packing, (P, W)."""
        return replace(
            self,
            items=packing.take(self.items) if self.places is None else self.items,
            places=None if self.places is None else packing.take(self.places),
            told=packing.take(self.told),
        )

    def item_fields(self) -> Tensor:
        """Return the item of every behavior, (..., C)."""
        return self.items if self.places is None else take_rows(self.items, self.places)

    def whole(self) -> Tensor:
        """Return the behaviors (..., W)."""
        items = self.item_fields()
        return torch.cat([items, self.told.to(items.dtype) @ self.feedback_3E], dim=-1)

    def linear(self, weight_HW: Tensor, bias_H: Tensor | None = None) -> Tensor:
        """Return `F.linear` of the behaviors, (..., H)."""
        of_item_HC, of_feedback_HE = weight_HW.split([self.items.shape[-1], self.feedback_3E.shape[-1]], dim=1)
        of_items = F.linear(self.items, of_item_HC, bias_H)
        of_items = of_items if self.places is None else take_rows(of_items, self.places)
        of_feedback_3H = F.linear(self.feedback_3E, of_feedback_HE)
        told = self.told.to(of_items.dtype)
        return torch.addmm(of_items.flatten(0, -2), told.flatten(0, -2), of_feedback_3H).view_as(of_items)


def beside(items_BC: Tensor, row_E: Tensor) -> Tensor:
    """Return (B, C + E): beside each row the same one."""
    return torch.cat([items_BC, row_E.expand(items_BC.shape[0], -1)], dim=-1)


def feedback(batch: Batch) -> Tensor:
    """Return what is told of each behavior, (..., 3): that it is there, was liked, and its standardized rating."""
    rating = batch["history_rating"]
    there, liked = (batch[name].to(rating.dtype) for name in ("history_mask", "history_liked"))
    return torch.stack([there, liked, rating], dim=-1)
