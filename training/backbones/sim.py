"""SIM: Search-based User Interest Modeling with Lifelong Sequential Behavior Data (Pi et al., CIKM 2020).

The latest behaviors are read as DIN does, where the paper's deployed model has DIEN.

Shape suffixes: B samples in the batch, N behaviors of the long history, K found ones, F fields, E embedding width,
W width of a candidate or behavior, I width of an item, S search width, T code slots.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from liber_feast.errors import ConfigError
from liber_feast.inputs import InputShape
from training.backbones.attention import DINAttention
from training.backbones.embedding import Batch, InputEmbedding
from training.backbones.layers import Activation, mlp
from training.backbones.long_history import AgeEmbedding, TargetAttention, check_long, latest, take, top_k


@dataclass(frozen=True, kw_only=True, slots=True)
class SIMConfig:
    """Sizes as in LIBER's experiments where they are known."""

    embedding_width: int = 32
    window: int = 20
    """The latest behaviors, which are all attended to, as in DIN."""
    search: Literal["hard", "soft"] = "hard"
    """Behaviors of the candidate's category, the latest first, or those nearest to it by a learned inner product."""
    category_field: int = 1
    """Which of the item's fields of codes is its category, for the hard search; 0 is its id."""
    found: int = 50
    """K, at most so many behaviors of the long history are attended to."""
    search_width: int = 64
    """S, for the soft search."""
    auxiliary_weight: float = 1.0
    """How much the search's own loss counts beside the other (alpha over beta), for the soft search."""
    attention_width: int = 64
    heads: int = 2
    age_width: int = 8
    attention_hidden: tuple[int, ...] = (64,)
    attention_softmax: bool = False
    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "dice"
    dropout: float = 0.3


class HardSearch(nn.Module):
    """Behaviors that share a category with the candidate (section 3.1, hard search)."""

    def __init__(self, shape: InputShape, *, field: int) -> None:
        super().__init__()
        slots = shape.item_slots
        if not 0 <= field < len(slots):
            raise ConfigError(
                f"sim: category_field is {field}, but items have {len(slots)} fields of codes. Name the one that is"
                ' their category, or set search to "soft".'
            )
        start = sum(slots[:field])
        self.slots = slice(start, start + slots[field])

    def forward(self, item_codes_BT: Tensor, history_codes_BNT: Tensor) -> Tensor:
        """Return (B, N) where a behavior is of the candidate's category; an unknown category is nobody's."""
        wanted_BT, seen_BNT = item_codes_BT[:, self.slots], history_codes_BNT[..., self.slots]
        same_BNTT = seen_BNT[..., None] == wanted_BT[:, None, None]
        return (same_BNTT & (seen_BNT != 0)[..., None]).flatten(2).any(dim=-1)


class SoftSearch(nn.Module):
    """`r_i = (W_b e_i) . (W_a e_a)` of behaviors e_i and the candidate e_a (section 3.1, soft search).

    A task of its own trains it: tell likes from `sum_i r_i e_i` and the fields.
    """

    def __init__(self, item_width: int, *, search_width: int, fields_width: int, config: SIMConfig) -> None:
        super().__init__()
        self.candidate = nn.Linear(item_width, search_width, bias=False)
        self.behavior = nn.Linear(item_width, search_width, bias=False)
        self.output = mlp(
            fields_width + item_width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def forward(self, candidate_BI: Tensor, item_BNI: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the relevances (B, N), 0 where the mask is false."""
        return torch.einsum("bs,bns->bn", self.candidate(candidate_BI), self.behavior(item_BNI)) * mask_BN

    def logits(self, fields_BFE: Tensor, relevance_BN: Tensor, item_BNI: Tensor) -> Tensor:
        """Return the logits (B,) of the search's own task."""
        pooled_BI = torch.einsum("bn,bni->bi", relevance_BN, item_BNI)
        return self.output(torch.cat([fields_BFE.flatten(1), pooled_BI], dim=-1)).squeeze(-1)


class SIM(nn.Module):
    """DIN's attention over the latest behaviors, and target attention over those that a search in all of them finds."""

    Config = SIMConfig

    def __init__(self, shape: InputShape, *, config: SIMConfig) -> None:
        """Build the layers.

        Raises:
            ConfigError: no history behind the window, no such category, or a config that fits nothing.
        """
        super().__init__()
        check_long(shape, window=config.window, found=config.found, owner="sim")
        self.config = config
        self.inputs = InputEmbedding(shape, width=config.embedding_width)
        width = self.inputs.behavior_width
        self.attention = DINAttention(
            width,
            hidden=config.attention_hidden,
            activation_name=config.activation,
            softmax=config.attention_softmax,
        )
        self.item_width = self.inputs.item.field_count * config.embedding_width
        self.search = self._search(shape)
        self.age = AgeEmbedding(config.age_width)
        self.exact = TargetAttention(
            width,
            behavior_width=width + config.age_width,
            attention_width=config.attention_width,
            heads=config.heads,
        )
        self.output = mlp(
            self.inputs.field_count * config.embedding_width + 2 * width,
            hidden=config.hidden,
            activation_name=config.activation,
            dropout=config.dropout,
        )

    def _search(self, shape: InputShape) -> HardSearch | SoftSearch:
        config = self.config
        if config.search == "hard":
            return HardSearch(shape, field=config.category_field)
        if config.search == "soft":
            return SoftSearch(
                self.item_width,
                search_width=config.search_width,
                fields_width=self.inputs.field_count * config.embedding_width,
                config=config,
            )
        raise ConfigError(f'sim: search is {config.search!r}; it must be "hard" or "soft".')

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits (B,) that the user likes the candidate."""
        fields_BFE, candidate_BW = self.inputs.fields_and_candidate(batch)
        score_BN, found_BN, _ = self._find(batch, candidate_BW)
        return self._logits(batch, fields_BFE, candidate_BW, score_BN, found_BN)

    def forward_with_task(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B,), and those of the soft search's own task; None with the hard search."""
        fields_BFE, candidate_BW = self.inputs.fields_and_candidate(batch)
        score_BN, found_BN, item_BNI = self._find(batch, candidate_BW)
        logit_B = self._logits(batch, fields_BFE, candidate_BW, score_BN, found_BN)
        if not isinstance(self.search, SoftSearch) or item_BNI is None or not self.task_weight:
            return logit_B, None
        return logit_B, self.search.logits(fields_BFE, score_BN, item_BNI)

    @property
    def task_weight(self) -> float:
        """How much the task's loss counts beside that of the logits."""
        return self.config.auxiliary_weight

    def _find(self, batch: Batch, candidate_BW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the score of each behavior, which may be found, and the items where the search embeds them."""
        mask_BN = batch["history_mask"]
        if isinstance(self.search, HardSearch):
            found_BN = self.search(batch["item_codes"], batch["history_codes"]) & mask_BN
            return found_BN.float(), found_BN, None
        item_BNI = self.inputs.item(batch["history_codes"], batch["history_numbers"]).flatten(-2)
        return self.search(candidate_BW[:, : self.item_width], item_BNI, mask_BN), mask_BN, item_BNI

    def _logits(
        self, batch: Batch, fields_BFE: Tensor, candidate_BW: Tensor, score_BN: Tensor, found_BN: Tensor
    ) -> Tensor:
        recent = latest(batch, count=self.config.window)
        short_BW = self.attention(
            candidate_BW[:, : self.item_width],
            self.inputs.wanted,
            self.inputs.behavior_parts(recent),
            recent["history_mask"],
        )
        index_BK, there_BK = top_k(score_BN.detach(), found_BN, count=self.config.found)
        found_BKW = self.inputs.behaviors(take(batch, index_BK, there_BK))
        age_BKT = self.age(index_BK, batch["history_mask"])
        long_BW = self.exact(candidate_BW, torch.cat([found_BKW, age_BKT.to(found_BKW.dtype)], dim=-1), there_BK)
        return self.output(torch.cat([fields_BFE.flatten(1), short_BW, long_BW], dim=-1)).squeeze(-1)
