"""DIN: Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018).

Shape suffixes: B samples in the batch, F fields, E embedding width, W width of a behavior.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liber_feast.inputs import InputShape
from training.backbones.attention import DINAttention
from training.backbones.embedding import Batch, InputEmbedding
from training.backbones.layers import Activation, mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class DINConfig:
    """Sizes as in LIBER's experiments; activations as in DIN's."""

    embedding_width: int = 32
    attention_hidden: tuple[int, ...] = (64,)
    attention_softmax: bool = False
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "dice"
    dropout: float = 0.3


class DIN(nn.Module):
    """Attention pooling of the behaviors beside the embedded fields, then an MLP."""

    Config = DINConfig

    def __init__(self, shape: InputShape, *, config: DINConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width)
        behavior_width = self.inputs.behavior_width
        self.attention = DINAttention(
            behavior_width,
            hidden=config.attention_hidden,
            activation_name=config.activation,
            softmax=config.attention_softmax,
        )
        self.output = mlp(
            self.inputs.field_count * config.embedding_width + behavior_width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        embedded = self.inputs(batch)
        interest_BW = self.attention(embedded.candidate_BC, embedded.wanted_E, embedded.behaviors, embedded.mask_BN)
        return self.output(torch.cat([embedded.fields_BFE.flatten(1), interest_BW], dim=-1)).squeeze(-1)
