"""DCN: Deep & Cross Network for Ad Click Predictions (Wang et al., ADKDD 2017).

Shape suffixes: B samples in the batch, F fields, E embedding width, X = F * E width of the stacked fields, L layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from liber_feast.inputs import InputShape
from training.backbones.embedding import Batch, InputEmbedding, PooledHistory
from training.backbones.layers import Activation, hidden_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class DCNConfig:
    """Sizes as in LIBER's experiments where they are known."""

    embedding_width: int = 32
    history: PooledHistory = "mean"
    cross_layers: int = 3
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "relu"
    dropout: float = 0.3


class CrossNetwork(nn.Module):
    """`x_{l+1} = x_0 x_l^T w_l + b_l + x_l` (equation 3), for inputs of any leading shape.

    Every x_l is `s_l x_0 + c_l` with a number s_l for each sample and a vector c_l for all of them: by equation 3
    `s_{l+1} = s_l (1 + x_0 . w_l) + c_l . w_l` and `c_{l+1} = c_l + b_l`. So one product of x_0 with all w_l is enough.
    """

    def __init__(self, width: int, *, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, width).normal_(std=width**-0.5))
        self.bias = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x: Tensor) -> Tensor:
        products = F.linear(x, self.weight)
        scale = torch.ones_like(x[..., 0])
        shift = torch.zeros_like(self.bias[0])
        for weight, bias, product in zip(self.weight, self.bias, products.unbind(dim=-1), strict=True):
            scale = scale * (1 + product) + shift @ weight
            shift = shift + bias
        return scale[..., None] * x + shift


class DCN(nn.Module):
    """A cross network and a deep network side by side over the embedded fields, then a linear layer over both."""

    Config = DCNConfig

    def __init__(self, shape: InputShape, *, config: DCNConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width, history=config.history)
        width = self.inputs.field_count * config.embedding_width
        self.cross = CrossNetwork(width, layers=config.cross_layers)
        self.deep = hidden_layers(
            width, hidden=config.hidden, activation_name=config.activation, dropout=config.dropout
        )
        self.output = nn.Linear(width + (config.hidden[-1] if config.hidden else width), 1)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        stacked_BX = self.inputs.fields(batch).flatten(1)
        return self.output(torch.cat([self.cross(stacked_BX), self.deep(stacked_BX)], dim=-1)).squeeze(-1)
