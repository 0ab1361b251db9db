"""DeepFM: A Factorization-Machine based Neural Network for CTR Prediction (Guo et al., IJCAI 2017).

Shape suffixes: B samples in the batch, F fields, E embedding width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from liber_feast.inputs import InputShape
from training.backbones.embedding import Batch, InputEmbedding, PooledHistory
from training.backbones.layers import Activation, mlp
from training.backbones.linear import LinearTerm


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepFMConfig:
    """Sizes as in LIBER's experiments where they are known."""

    embedding_width: int = 32
    history: PooledHistory = "mean"
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "relu"
    dropout: float = 0.3


def pairwise_products(fields_BFE: Tensor) -> Tensor:
    """Return `sum_{i<j} <v_i, v_j>` (B,), the second-order term of equation 2: half of (sum v)^2 - sum v^2."""
    return 0.5 * (fields_BFE.sum(dim=1).square() - fields_BFE.square().sum(dim=1)).sum(dim=-1)


class DeepFM(nn.Module):
    """A factorization machine and an MLP that share the embedded fields; their logits are added (equation 1)."""

    Config = DeepFMConfig

    def __init__(self, shape: InputShape, *, config: DeepFMConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width, history=config.history)
        self.linear = LinearTerm(shape, width=config.embedding_width)
        self.output = mlp(
            self.inputs.field_count * config.embedding_width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        fields_BFE = self.inputs.fields(batch)
        machine_B = self.linear(batch, fields_BFE) + pairwise_products(fields_BFE)
        return machine_B + self.output(fields_BFE.flatten(1)).squeeze(-1)
