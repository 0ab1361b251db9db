"""The first-order ("wide") term of DeepFM, xDeepFM and FiBiNet.

Shape suffixes: B samples in the batch, F fields, E embedding width, M dense features.
"""

import torch
from torch import Tensor, nn

from liber_feast.inputs import InputShape
from training.backbones.embedding import Batch
from training.backbones.fields import INITIAL_DEVIATION, FieldEmbedding


class LinearTerm(nn.Module):
    """`sum_i w_i x_i` over user and item codes and numbers, dense features and, with LIBER, the fused vector's field.

    The weights of codes and numbers are embeddings of width 1, so several codes of a field count as their mean. The
    constant w_0 is the bias of the backbone's output layer; the recent behaviors have no first-order weights.
    """

    def __init__(self, shape: InputShape, *, width: int) -> None:
        """Build the weights; `width` is that of the fields."""
        super().__init__()
        self.user = FieldEmbedding(
            slots=shape.user_slots, code_count=shape.user_code_count, number_count=shape.user_number_count, width=1
        )
        self.item = FieldEmbedding(
            slots=shape.item_slots, code_count=shape.item_code_count, number_count=shape.item_number_count, width=1
        )
        self.dense = nn.Parameter(torch.empty(shape.dense_count).normal_(std=INITIAL_DEVIATION))
        self.has_fused = shape.memory_width > 0
        self.fused = nn.Parameter(torch.empty(width * self.has_fused).normal_(std=INITIAL_DEVIATION))

    def forward(self, batch: Batch, fields_BFE: Tensor) -> Tensor:
        """Return the term (B,); `fields_BFE` are those of the batch, the fused vector's the last of them."""
        term_B = self.item(batch["item_codes"], batch["item_numbers"]).sum(dim=(1, 2)) + batch["dense"] @ self.dense
        if self.user.field_count:
            term_B = term_B + self.user(batch["user_codes"], batch["user_numbers"]).sum(dim=(1, 2))
        return term_B + fields_BFE[:, -1] @ self.fused if self.has_fused else term_B
