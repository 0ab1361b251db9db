"""AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks (Song et al., CIKM 2019).

Shape suffixes: B samples in the batch, F fields, E embedding width, D input width of a layer, H heads, K head width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from liber_feast.inputs import InputShape
from training.backbones.embedding import Batch, InputEmbedding, PooledHistory
from training.backbones.field_attention import attend
from training.backbones.layers import Activation, mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoIntConfig:
    """Attention as in AutoInt's experiments, the MLP of AutoInt+ as in LIBER's."""

    embedding_width: int = 32
    history: PooledHistory = "mean"
    attention_layers: int = 3
    heads: int = 2
    head_width: int = 32
    attention_scale: bool = False
    """Whether inner products are divided by the root of the head width; the paper does not."""
    hidden: tuple[int, ...] | None = (200, 80)
    """None leaves the MLP out: AutoInt instead of AutoInt+."""
    activation: Activation = "relu"
    dropout: float = 0.3


class InteractingLayer(nn.Module):
    """Multi-head self-attention between fields: (B, F, D) -> (B, F, H * K).

    Head h weighs field k for field m by the softmax over k of `<W_query e_m, W_key e_k>` (equation 5) and sums
    `W_value e_k` so weighted (equation 6); the heads side by side (equation 7) are added to `W_residual e_m`, and what
    is negative is cut off (equation 8).
    """

    def __init__(self, width: int, *, heads: int, head_width: int, scale: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_width**-0.5 if scale else 1.0
        self.projection = nn.Linear(width, 4 * heads * head_width, bias=False)
        """Query, key, value and residual, in this order."""

    def forward(self, fields_BFD: Tensor) -> Tensor:
        return attend(fields_BFD, self.projection.weight, heads=self.heads, scale=self.scale)


class AutoInt(nn.Module):
    """Interacting layers over the embedded fields and a linear layer (equation 9); with AutoInt+ an MLP beside them."""

    Config = AutoIntConfig

    def __init__(self, shape: InputShape, *, config: AutoIntConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width, history=config.history)
        attended_width = config.heads * config.head_width
        self.interaction = nn.Sequential(
            *(
                InteractingLayer(
                    attended_width if layer else config.embedding_width,
                    heads=config.heads,
                    head_width=config.head_width,
                    scale=config.attention_scale,
                )
                for layer in range(config.attention_layers)
            )
        )
        self.interaction_output = nn.Linear(self.inputs.field_count * attended_width, 1)
        self.output: nn.Module | None = None
        if config.hidden is not None:
            self.output = mlp(
                self.inputs.field_count * config.embedding_width,
                hidden=config.hidden,
                activation_name=config.activation,
                dropout=config.dropout,
            )

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        fields_BFE = self.inputs.fields(batch)
        logit_B = self.interaction_output(self.interaction(fields_BFE).flatten(1)).squeeze(-1)
        return logit_B if self.output is None else logit_B + self.output(fields_BFE.flatten(1)).squeeze(-1)
