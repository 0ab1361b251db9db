"""xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems (Lian et al., KDD 2018).

Shape suffixes: B samples in the batch, F fields, E embedding width, H feature maps of a layer, G of the one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liber_feast.inputs import InputShape
from training.backbones.embedding import Batch, InputEmbedding, PooledHistory
from training.backbones.layers import Activation, mlp
from training.backbones.linear import LinearTerm


@dataclass(frozen=True, kw_only=True, slots=True)
class XDeepFMConfig:
    """Sizes as in LIBER's experiments where they are known."""

    embedding_width: int = 32
    history: PooledHistory = "mean"
    feature_maps: tuple[int, ...] = (50, 50)
    """Of each layer of the compressed interaction network."""
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "relu"
    dropout: float = 0.3


class CompressedInteraction(nn.Module):
    """The compressed interaction network (CIN): (B, F, E) fields -> (B, sum of feature maps).

    Layer k has the feature maps `X^k_h = sum_{i,j} W^{k,h}_{ij} (X^{k-1}_i * X^0_j)` (equation 6), `*` by component,
    without activation; each is summed over its components (equation 7), and those of all layers are the output. Of the
    last layer only the sums are wanted: they need the products of X^{k-1} and X^0 summed over their components alone.
    """

    def __init__(self, field_count: int, *, feature_maps: Sequence[int]) -> None:
        super().__init__()
        before = [field_count, *feature_maps[:-1]]
        self.weights = nn.ParameterList(
            torch.empty(maps, previous * field_count).normal_(std=(previous * field_count) ** -0.5)
            for maps, previous in zip(feature_maps, before, strict=True)
        )

    def forward(self, fields_BFE: Tensor) -> Tensor:
        """Return the pooled feature maps of all layers, (B, H1 + H2 + ...)."""
        fields_BEF = fields_BFE.transpose(1, 2).contiguous()
        maps_BEG, pooled = fields_BEF, []
        for weight in self.weights[:-1]:
            products_BEC = (maps_BEG[..., :, None] * fields_BEF[..., None, :]).flatten(2)
            maps_BEG = products_BEC @ weight.T
            pooled.append(maps_BEG.sum(dim=1))
        summed_BGF = maps_BEG.transpose(1, 2) @ fields_BEF
        pooled.append(summed_BGF.flatten(1) @ self.weights[-1].T)
        return torch.cat(pooled, dim=-1)


class XDeepFM(nn.Module):
    """A linear term, a compressed interaction network and an MLP over the same fields, added (equation 9)."""

    Config = XDeepFMConfig

    def __init__(self, shape: InputShape, *, config: XDeepFMConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width, history=config.history)
        self.linear = LinearTerm(shape, width=config.embedding_width)
        self.interaction = CompressedInteraction(self.inputs.field_count, feature_maps=config.feature_maps)
        self.interaction_output = nn.Linear(sum(config.feature_maps), 1, bias=False)
        self.output = mlp(
            self.inputs.field_count * config.embedding_width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        fields_BFE = self.inputs.fields(batch)
        explicit_B = self.interaction_output(self.interaction(fields_BFE)).squeeze(-1)
        return self.linear(batch, fields_BFE) + explicit_B + self.output(fields_BFE.flatten(1)).squeeze(-1)
