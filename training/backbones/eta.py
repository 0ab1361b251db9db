"""ETA: End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model (Chen et al., 2021).

Shape suffixes: B samples in the batch, N behaviors of the long history, K found ones, F fields, E embedding width,
W width of a candidate or behavior, I width of an item, H bits of a hash.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liber_feast.inputs import InputShape
from training.backbones.embedding import Batch, InputEmbedding
from training.backbones.layers import Activation, mlp
from training.backbones.long_history import TargetAttention, check_long, latest, take, top_k


@dataclass(frozen=True, kw_only=True, slots=True)
class ETAConfig:
    """Sizes as in LIBER's experiments where they are known."""

    embedding_width: int = 32
    window: int = 20
    """The latest behaviors, which are all attended to."""
    found: int = 50
    """K, at most so many behaviors of the long history are attended to."""
    hash_bits: int = 64
    attention_width: int = 64
    heads: int = 2
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "dice"
    dropout: float = 0.3


class SimHash(nn.Module):
    """`sign(e R)` with a fixed random R: items of a small angle differ in few bits.

    R is drawn once and kept with the weights; the items' embeddings, and so their hashes, follow the training.
    """

    rotation: Tensor

    def __init__(self, width: int, *, bits: int) -> None:
        super().__init__()
        self.register_buffer("rotation", torch.randn(width, bits))

    def forward(self, items: Tensor) -> Tensor:
        """Return the hashes (..., H) of items (..., width), each bit as 1 or -1."""
        # Not in bfloat16: a hash of training would not be that of scoring.
        with torch.autocast(items.device.type, enabled=False):
            return torch.where(items.float() @ self.rotation > 0, 1.0, -1.0)

    def distance(self, candidate_BI: Tensor, item_BNI: Tensor) -> Tensor:
        """Return in how many bits the candidate and each item differ, (B, N)."""
        with torch.autocast(item_BNI.device.type, enabled=False):
            agreement_BN = torch.einsum("bh,bnh->bn", self(candidate_BI), self(item_BNI))
        return (self.rotation.shape[1] - agreement_BN) / 2


class ETA(nn.Module):
    """Target attention over the latest behaviors and over those whose hashes are nearest to the candidate's."""

    Config = ETAConfig

    def __init__(self, shape: InputShape, *, config: ETAConfig) -> None:
        """Build the layers.

        Raises:
            ConfigError: no history behind the window, or a config that fits nothing.
        """
        super().__init__()
        check_long(shape, window=config.window, found=config.found, owner="eta")
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width)
        width = self.inputs.behavior_width
        self.item_width = self.inputs.item.field_count * config.embedding_width
        self.hash = SimHash(self.item_width, bits=config.hash_bits)
        self.short, self.long = (
            TargetAttention(width, behavior_width=width, attention_width=config.attention_width, heads=config.heads)
            for _ in range(2)
        )
        self.output = mlp(
            self.inputs.field_count * config.embedding_width + 2 * width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        fields_BFE, candidate_BW = self.inputs.fields_and_candidate(batch)
        recent, found = latest(batch, count=self.config.window), self.retrieve(batch, candidate_BW)
        short_BW = self.short(candidate_BW, self.inputs.behaviors(recent), recent["history_mask"])
        long_BW = self.long(candidate_BW, self.inputs.behaviors(found), found["history_mask"])
        return self.output(torch.cat([fields_BFE.flatten(1), short_BW, long_BW], dim=-1)).squeeze(-1)

    @torch.no_grad()
    def retrieve(self, batch: Batch, candidate_BW: Tensor) -> Batch:
        """Return the batch's `HISTORY` of the behaviors nearest to the candidate, at most K, oldest first."""
        item_BNI = self.inputs.item(batch["history_codes"], batch["history_numbers"]).flatten(-2)
        distance_BN = self.hash.distance(candidate_BW[:, : self.item_width], item_BNI)
        return take(batch, *top_k(-distance_BN, batch["history_mask"], count=self.config.found))
