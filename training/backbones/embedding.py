"""What every backbone embeds: user and item fields, behaviors with their feedback, and LIBER's fused vector.

Shape suffixes: B samples in the batch, N behaviors, P sealed partitions, D vector width, F fields, E embedding
width, W = width of an item or behavior (its fields and its feedback, side by side).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from liber_feast.fusion import AttentionFusion, masked_mean
from liber_feast.inputs import InputShape
from training.backbones.behaviors import (
    DISTINCT,
    FEEDBACK_COUNT,
    HISTORY,
    PLACES,
    Batch,
    Behaviors,
    beside,
    feedback,
)
from training.backbones.fields import INITIAL_DEVIATION, FieldEmbedding
from training.backbones.fusing import WINDOWS, fuse, fuse_windows
from training.backbones.kar import KnowledgeAdaptor
from training.backbones.match import MatchHead

__all__ = ["HISTORY", "Batch", "Embedded", "History", "InputEmbedding", "PooledHistory", "feedback"]

History = Literal["sequence", "mean", "none"]
"""What a backbone sees of h, the recent behaviors: each of them, their mean field by field, or nothing."""
PooledHistory = Literal["mean", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """A batch, embedded."""

    fields_BFE: Tensor
    """User fields, candidate fields, dense features and, with LIBER, the fused vector as the last (equation 7)."""
    candidate_BC: Tensor
    """The candidate's item fields side by side."""
    wanted_E: Tensor
    """What stands with a candidate in place of feedback: it is a behavior that is yet to come."""
    behaviors: Behaviors
    mask_BN: Tensor


class InputEmbedding(nn.Module):
    """Embed a batch of `liber_feast.inputs`; behaviors and candidates share the item embeddings.

    With LIBER (`shape.memory_width` > 0) the batch holds `vectors` and `sealed`, which the fusion turns into one
    vector, or `fused`, the same vector computed before, or says where the vectors lie (`WINDOWS`); all give the same
    fields. With KAR they are the one text of each user, and its adaptor takes the place of the fusion.

    A backbone that attends to behaviors calls the module; one of fields alone says `history` and calls `fields`.
    """

    def __init__(self, shape: InputShape, *, width: int, history: History = "sequence") -> None:
        super().__init__()
        self.history = history
        self.user = FieldEmbedding(
            slots=shape.user_slots, code_count=shape.user_code_count, number_count=shape.user_number_count, width=width
        )
        self.item = FieldEmbedding(
            slots=shape.item_slots, code_count=shape.item_code_count, number_count=shape.item_number_count, width=width
        )
        self.dense = nn.Parameter(torch.empty(shape.dense_count, width).normal_(std=INITIAL_DEVIATION))
        if history != "none":
            self.feedback = nn.Parameter(torch.empty(FEEDBACK_COUNT, width).normal_(std=INITIAL_DEVIATION))
        if history == "sequence":
            self.wanted = nn.Parameter(torch.empty(width).normal_(std=INITIAL_DEVIATION))
        self.behavior_width = (self.item.field_count + 1) * width
        self.field_count = self.user.field_count + self.item.field_count + shape.dense_count
        if history == "mean":
            self.field_count += self.item.field_count + 1
        self.fusion: AttentionFusion | KnowledgeAdaptor | None = None
        self.match = MatchHead(shape) if shape.match != "mean" else None
        if shape.memory_width:
            kind = KnowledgeAdaptor if shape.memory_kind == "knowledge" else AttentionFusion
            self.fusion = kind(width=shape.memory_width, fused_width=shape.fused_width)
            self.project = (
                nn.Linear(shape.fused_width, width, bias=False) if shape.fused_width != width else nn.Identity()
            )
            self.field_count += 1

    def forward(self, batch: Batch) -> Embedded:
        item_BFE, items = self._items(batch)
        return Embedded(
            fields_BFE=self._fields(batch, item_BFE, items),
            candidate_BC=item_BFE.flatten(1),
            wanted_E=self.wanted,
            behaviors=self.behavior_parts(batch, items),
            mask_BN=batch["history_mask"],
        )

    def fields(self, batch: Batch) -> Tensor:
        """Return all fields (B, F, E), among them the pooled behaviors where `history` is "mean"."""
        return self._fields(batch, *self._items(batch))

    def fields_and_candidate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return all fields (B, F, E), and the candidate (B, W) as a behavior that is yet to come."""
        item_BFE, items = self._items(batch)
        return self._fields(batch, item_BFE, items), beside(item_BFE.flatten(1), self.wanted)

    def _items(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the fields of the candidates (B, F, E) and of the distinct items (I, F, E), if the batch has these."""
        codes, numbers = batch["item_codes"], batch["item_numbers"]
        if self.history == "none" or PLACES not in batch:
            return self.item(codes, numbers), None
        distinct_codes, distinct_numbers = (batch[name] for name in DISTINCT)
        found = self.item(torch.cat([codes, distinct_codes]), torch.cat([numbers, distinct_numbers]))
        item_BFE, items_IFE = found.split([codes.shape[0], distinct_codes.shape[0]])
        return item_BFE, items_IFE

    def _fields(self, batch: Batch, item_BFE: Tensor, items_IFE: Tensor | None) -> Tensor:
        dense = batch["dense"] if self.match is None else self.match.dense(batch)
        fields = [item_BFE, dense[..., None] * self.dense]
        if self.user.field_count:
            fields.insert(0, self.user(batch["user_codes"], batch["user_numbers"]))
        if self.history == "mean":
            fields += [self._pooled_items(batch, items_IFE), self._pooled_feedback(batch)]
        if self.fusion is not None:
            fields.append(self.project(self.fused(batch))[:, None])
        return torch.cat(fields, dim=1)

    def fused(self, batch: Batch) -> Tensor:
        """Return the fused vector (B, F) of equation 6, computed here unless the batch brings it."""
        if "fused" in batch:
            return batch["fused"]
        assert self.fusion is not None, "a batch without LIBER has no fused vector"
        if isinstance(self.fusion, AttentionFusion) and "vectors" not in batch and WINDOWS[0] in batch:
            return fuse_windows(self.fusion, *(batch[name] for name in WINDOWS))
        vectors_BPD, sealed_BP = batch["vectors"], batch["sealed"]
        # On a GPU the padding is cheaper than waiting for the lengths.
        if vectors_BPD.is_cuda or vectors_BPD.requires_grad or not isinstance(self.fusion, AttentionFusion):
            return self.fusion(vectors_BPD, sealed_BP)
        return fuse(self.fusion, vectors_BPD, sealed_BP)

    def behaviors(self, batch: Batch) -> Tensor:
        """Return the behaviors (B, N, W): the item's fields and one more for what the user thought of it."""
        return self.behavior_parts(batch).whole()

    def behavior_parts(self, batch: Batch, items_IFE: Tensor | None = None) -> Behaviors:
        """Return the behaviors in parts; without `items_IFE` the distinct items are not used.

        The batch's `HISTORY` may have other leading axes than (B, N); the behaviors have them too.
        """
        return Behaviors(
            items=(
                self.item(batch["history_codes"], batch["history_numbers"]) if items_IFE is None else items_IFE
            ).flatten(-2),
            places=None if items_IFE is None else batch[PLACES],
            told=feedback(batch),
            feedback_3E=self.feedback,
        )

    def _pooled_items(self, batch: Batch, items_IFE: Tensor | None) -> Tensor:
        """Return the items of the behaviors as fields (B, F, E), each the mean over what is there among them."""
        if items_IFE is not None:
            codes, numbers = (batch[name] for name in DISTINCT)
            return self.item.pool_distinct(codes, numbers, items_IFE=items_IFE, places_BN=batch[PLACES])
        mask_BN = batch["history_mask"]
        return self.item.pool(
            batch["history_codes"].masked_fill(~mask_BN[..., None], 0),
            batch["history_numbers"].masked_fill(~mask_BN[..., None, None], 0),
        )

    def _pooled_feedback(self, batch: Batch) -> Tensor:
        """Return the mean of what is told of the behaviors as a field, (B, 1, E)."""
        return (masked_mean(feedback(batch), batch["history_mask"]) @ self.feedback)[:, None]

    def pooled(self, batch: Batch) -> Tensor:
        """Return the behaviors as fields (B, F, E): for each of the item's and the feedback the mean over them."""
        return torch.cat([self._pooled_items(batch, None), self._pooled_feedback(batch)], dim=1)
