"""FiBiNET: Combining Feature Importance and Bilinear feature Interaction (Huang, Zhang, Zhang, RecSys 2019).

Shape suffixes: B samples in the batch, F fields, E embedding width, P = F * (F - 1) / 2 pairs of fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from liber_feast.inputs import InputShape
from training.backbones.embedding import Batch, InputEmbedding, PooledHistory
from training.backbones.layers import Activation, mlp
from training.backbones.linear import LinearTerm
from training.backbones.pairs import bilinear_pairs

Bilinear = Literal["all", "each", "interaction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FiBiNetConfig:
    """Sizes as in LIBER's experiments where they are known, else as in FiBiNET's."""

    embedding_width: int = 32
    history: PooledHistory = "mean"
    bilinear: Bilinear = "interaction"
    """One matrix for all pairs of fields, for each left field, or for each pair."""
    shared_bilinear: bool = False
    """Whether embeddings and reweighted embeddings go through the same matrices."""
    reduction: int = 3
    """Fields per unit of the squeeze-excitation's narrow layer."""
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "relu"
    dropout: float = 0.3


class SqueezeExcitation(nn.Module):
    """Reweight fields by what all of them are: (B, F, E) -> (B, F, E).

    Squeeze: z has the mean of each field's components. Excitation: `a = relu(W_2 relu(W_1 z))`, W_1 leading to
    F / `reduction` units. Reweighting: each field times its a.
    """

    def __init__(self, field_count: int, *, reduction: int) -> None:
        super().__init__()
        narrow = max(1, field_count // reduction)
        self.weights = nn.Sequential(
            nn.Linear(field_count, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, field_count, bias=False), nn.ReLU()
        )

    def forward(self, fields_BFE: Tensor) -> Tensor:
        return fields_BFE * self.weights(fields_BFE.mean(dim=-1))[..., None]


class BilinearInteraction(nn.Module):
    """`p_ij = v_i W * v_j` for every pair i < j, in order: (B, F, E) -> (B, P, E); `*` by component."""

    def __init__(self, field_count: int, *, width: int, kind: Bilinear) -> None:
        super().__init__()
        self.kind = kind
        pair_count = field_count * (field_count - 1) // 2
        matrix_count = {"all": 1, "each": field_count - 1, "interaction": pair_count}[kind]
        self.weight = nn.Parameter(torch.empty(matrix_count, width, width).normal_(std=width**-0.5))
        """W of all pairs, of the pairs with left field i, or of each pair: (1, F - 1 or P, E in, E out)."""

    def forward(self, fields_BFE: Tensor) -> Tensor:
        last = fields_BFE.shape[1] - 1
        if self.kind == "interaction":
            return bilinear_pairs(fields_BFE, self.weight)
        left_BFE = fields_BFE[:, :last]
        if self.kind == "all":
            mapped_BFE = left_BFE @ self.weight[0]
        else:
            mapped_BFE = torch.einsum("bfe,feg->bfg", left_BFE, self.weight)
        return torch.cat([mapped_BFE[:, i, None] * fields_BFE[:, i + 1 :] for i in range(last)], dim=1)


class FiBiNet(nn.Module):
    """Bilinear interactions of the fields and of the reweighted fields, an MLP over both, and a linear term."""

    Config = FiBiNetConfig

    def __init__(self, shape: InputShape, *, config: FiBiNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_width
        self.inputs = InputEmbedding(shape, width=width, history=config.history)
        field_count = self.inputs.field_count
        self.linear = LinearTerm(shape, width=width)
        self.excitation = SqueezeExcitation(field_count, reduction=config.reduction)
        self.interaction = BilinearInteraction(field_count, width=width, kind=config.bilinear)
        self.reweighted_interaction = (
            None if config.shared_bilinear else BilinearInteraction(field_count, width=width, kind=config.bilinear)
        )
        self.output = mlp(
            field_count * (field_count - 1) * width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        fields_BFE = self.inputs.fields(batch)
        of_reweighted = self.reweighted_interaction or self.interaction
        pairs = [of_reweighted(self.excitation(fields_BFE)).flatten(1), self.interaction(fields_BFE).flatten(1)]
        return self.linear(batch, fields_BFE) + self._output(pairs).squeeze(-1)

    def _output(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the MLP of the parts side by side; they are wide, and to put them there takes as long as a layer."""
        first = cast("nn.Linear", self.output[0])
        weights = first.weight.split([part.shape[1] for part in parts], dim=1)
        summed = F.linear(parts[0], weights[0], first.bias)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            summed = summed + F.linear(part, weight)
        return cast("Tensor", self.output[1:](summed))
