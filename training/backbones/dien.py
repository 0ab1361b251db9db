"""DIEN: Deep Interest Evolution Network for Click-Through Rate Prediction (Zhou et al., AAAI 2019).

Shape suffixes: B samples in the batch, N behaviors, P packed rows, Q those of all steps but the first, F fields,
E embedding width, W width of a behavior, H hidden width.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from liber_feast.inputs import InputShape
from training.backbones.behaviors import HISTORY, PLACES, Batch, Behaviors, beside
from training.backbones.embedding import InputEmbedding
from training.backbones.layers import Activation, mlp
from training.backbones.packing import Packing, pack
from training.backbones.recurrence import AUGRU, GRU
from training.backbones.rows import take_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class DIENConfig:
    """Sizes as in LIBER's experiments where they are known, else as in DIEN's code."""

    embedding_width: int = 32
    hidden_width: int | None = None
    """H, of both recurrences; None: interests are as wide as an item, all its fields side by side."""
    auxiliary_weight: float = 1.0
    """alpha, how much the auxiliary loss counts beside that of the logits; 0 leaves it out."""
    auxiliary_hidden: tuple[int, ...] = (100, 50)
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "dice"
    dropout: float = 0.3


class BilinearAttention(nn.Module):
    """`a_t = softmax_t(h_t W e_a)`: how much each interest h_t matters for the candidate e_a (equation 8)."""

    def __init__(self, hidden_width: int, *, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, hidden_width, bias=False)

    def forward(self, candidate_BW: Tensor, interest_PH: Tensor, packing: Packing) -> Tensor:
        """Return the weights (P,), which sum to 1 over a sample's behaviors; padding has 0."""
        wanted_PH = packing.take_samples(self.weight(candidate_BW))
        return packing.softmax((interest_PH * wanted_PH).sum(dim=-1))


class NextBehavior(nn.Module):
    """The auxiliary loss: an interest must tell the behavior that came next from another one (equation 6).

    `-log s(h_t, e_{t+1}) - log(1 - s(h_t, e'_{t+1}))`, s an MLP's probability, in the mean over all behaviors that came
    next. The other one is drawn from the batch's behaviors, so items by how often they occur; where it happens to be
    the same item, the pair does not count.
    """

    def __init__(self, hidden_width: int, *, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.network = mlp(hidden_width + width, hidden=hidden, activation_name="sigmoid")

    def forward(self, interest_PH: Tensor, behaviors: Behaviors, item_PC: Tensor, packing: Packing) -> Tensor:
        """Return the loss, a scalar; 0 without any pair. Rows of `item_PC` are equal where items are."""
        first = len(packing.last_B)
        drawn_Q = draw(packing.there_P, count=len(packing.before_Q))
        counts_Q = packing.there_P[first:] & (item_PC[first:] != item_PC[drawn_Q]).any(dim=-1)
        next_logit_Q, other_logit_Q = self._logits(interest_PH, behaviors, drawn_Q, packing)
        loss_Q = F.softplus(-next_logit_Q) + F.softplus(other_logit_Q)
        return (loss_Q * counts_Q).sum() / counts_Q.sum().clamp(min=1)

    def _logits(
        self, interest_PH: Tensor, behaviors: Behaviors, drawn_Q: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of what came next and of what was drawn; the first layer sees each row but once."""
        layer = cast("nn.Linear", self.network[0])
        width = interest_PH.shape[1]
        of_interest, of_behavior = layer.weight[:, :width], layer.weight[:, width:]
        interest = take_rows(F.linear(interest_PH, of_interest, layer.bias), packing.before_Q)
        next_Q = torch.arange(len(packing.last_B), len(interest_PH), device=drawn_Q.device)
        behavior = take_rows(behaviors.linear(of_behavior), torch.cat([next_Q, drawn_Q]))
        next_logit_Q, other_logit_Q = self.network[1:](behavior.unflatten(0, (2, -1)) + interest).squeeze(-1)
        return next_logit_Q, other_logit_Q


def draw(there_P: Tensor, *, count: int) -> Tensor:
    """Return `count` places drawn from those where `there_P` is true, without waiting for a GPU to say how many."""
    places = there_P.argsort(descending=True, stable=True)
    chosen = torch.rand(count, dtype=torch.float64, device=there_P.device) * there_P.sum()
    return places[chosen.long()]


class DIEN(nn.Module):
    """Interests by a GRU, their evolution towards the candidate by an AUGRU, and an MLP over its end and the fields."""

    Config = DIENConfig

    def __init__(self, shape: InputShape, *, config: DIENConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width)
        width = self.inputs.behavior_width
        hidden_width = config.hidden_width or self.inputs.item.field_count * config.embedding_width
        self.extraction = GRU(width, hidden_width=hidden_width)
        self.attention = BilinearAttention(hidden_width, width=width)
        self.evolution = AUGRU(hidden_width, hidden_width=hidden_width)
        self.auxiliary: NextBehavior | None = None
        if config.auxiliary_weight:
            self.auxiliary = NextBehavior(hidden_width, width=width, hidden=config.auxiliary_hidden)
        self.output = mlp(
            self.inputs.field_count * config.embedding_width + hidden_width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        return self._read(batch)[0]

    def forward_with_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B,) and the weighted auxiliary loss."""
        logit_B, interest_PH, behaviors, packing = self._read(batch)
        if self.auxiliary is None:
            return logit_B, logit_B.new_zeros(())
        loss = self.auxiliary(interest_PH, behaviors, item_numbers(batch, packing), packing)
        return logit_B, self.config.auxiliary_weight * loss

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor, Behaviors, Packing]:
        """Return the logits, the interest after each behavior, the behaviors, and how these two are packed."""
        packing = pack(batch["history_mask"])
        embedded = self.inputs(batch)
        behaviors = embedded.behaviors.packed(packing)
        interest_PH = self.extraction(behaviors, packing)
        attention_P = self.attention(beside(embedded.candidate_BC, embedded.wanted_E), interest_PH, packing)
        evolved_BH = take_rows(self.evolution(interest_PH, attention_P, packing), packing.last_B)
        logit_B = self.output(torch.cat([embedded.fields_BFE.flatten(1), evolved_BH], dim=-1)).squeeze(-1)
        return logit_B, interest_PH, behaviors, packing


def item_numbers(batch: Batch, packing: Packing) -> Tensor:
    """Return for each packed behavior numbers (P, ...) that are equal where items are."""
    if PLACES in batch:
        return packing.take(batch[PLACES])[:, None]
    return torch.cat([packing.take(batch[name]).flatten(1) for name in HISTORY[:2]], dim=1)
