"""A history too long for every behavior to be attended to: the latest of it, and what a search in it finds.

A batch's behaviors stand at the start of their axis, oldest first, and padding behind them.

Shape suffixes: B samples in the batch, N behaviors of the long history, K behaviors taken from it, W width of an item,
C width of a behavior, T width of a time embedding.
"""

import torch
from torch import Tensor, nn

from liber_feast.errors import ConfigError
from liber_feast.inputs import InputShape
from training.backbones.embedding import HISTORY, Batch
from training.backbones.fields import INITIAL_DEVIATION

AGE_GROUPS = 16
"""Ages beyond 2**15 behaviors are one group."""


def check_long(shape: InputShape, *, window: int, found: int, owner: str) -> None:
    """Check that there is a history to search behind the window of the latest behaviors.

    Raises:
        ConfigError: the inputs end where the window does, or nothing is to be found.
    """
    if found < 1:
        raise ConfigError(f"{owner}: found is {found}; it must be at least 1.")
    if not 1 <= window < shape.sequence_length:
        raise ConfigError(
            f"{owner} attends to the last {window} behaviors and searches those before them, but its inputs hold the"
            f" last {shape.sequence_length}. Set `sequence_length` above `window`: --sequence-length 300."
        )


def latest(batch: Batch, *, count: int) -> Batch:
    """Return the batch's `HISTORY` of the last `count` behaviors of each sample, (B, count) and further axes."""
    mask_BN = batch["history_mask"]
    length_B1 = mask_BN.sum(dim=1, keepdim=True)
    index_BK = (length_B1 - count).clamp(min=0) + torch.arange(count, device=mask_BN.device)
    return take(batch, index_BK.clamp(max=mask_BN.shape[1] - 1), index_BK < length_B1)


def take(batch: Batch, index_BK: Tensor, there_BK: Tensor) -> Batch:
    """Return the batch's `HISTORY` of the behaviors at `index_BK`, which count where `there_BK` is true."""
    taken = {name: _gather(batch[name], index_BK) for name in HISTORY}
    return taken | {
        "history_mask": there_BK,
        "history_liked": taken["history_liked"] & there_BK,
        "history_rating": taken["history_rating"] * there_BK,
    }


def _gather(values_BN: Tensor, index_BK: Tensor) -> Tensor:
    """Return `values[b, index[b, k]]`, (B, K) and the further axes of the values."""
    index = index_BK.view(*index_BK.shape, *[1] * (values_BN.dim() - 2))
    return values_BN.gather(1, index.expand(*index_BK.shape, *values_BN.shape[2:]))


def top_k(score_BN: Tensor, mask_BN: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Return where the `count` highest scores are, oldest first, and (B, K) which of these places are behaviors.

    Of equal scores the later behaviors are found. Where `mask_BN` is false nothing is; of fewer behaviors than `count`
    all are found.
    """
    hidden_BN = score_BN.float().masked_fill(~mask_BN, -torch.inf)
    newest_first_BK = hidden_BN.flip(1).argsort(dim=1, descending=True, stable=True)[:, :count]
    index_BK = (mask_BN.shape[1] - 1 - newest_first_BK).sort(dim=1).values
    return index_BK, mask_BN.gather(1, index_BK)


class AgeEmbedding(nn.Module):
    """Embed how long ago a behavior was, counted in the behaviors since: groups of 1, 2, 4, 8 and so on.

    SIM embeds the interval of time; the batch holds the order of the behaviors and no times.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(AGE_GROUPS, width).normal_(std=INITIAL_DEVIATION))

    def forward(self, index_BK: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the embeddings (B, K, T) of the behaviors at `index_BK` of a history."""
        since_BK = (mask_BN.sum(dim=1, keepdim=True) - 1 - index_BK).clamp(min=0)
        starts = 2 ** torch.arange(1, AGE_GROUPS, device=since_BK.device) - 1
        return self.weight[torch.bucketize(since_BK, starts, right=True)]


class TargetAttention(nn.Module):
    """Multi-head attention of the candidate over behaviors: `softmax(q k^T / sqrt(d)) v` in each head, projected.

    A sample without behaviors gets zeros.
    """

    def __init__(self, width: int, *, behavior_width: int, attention_width: int, heads: int) -> None:
        """Build the projections of candidates (B, width) and of behaviors (B, K, behavior_width).

        Raises:
            ConfigError: the heads do not share out the attention's width.
        """
        super().__init__()
        if heads < 1 or attention_width % heads:
            raise ConfigError(f"attention_width {attention_width} cannot be shared out among {heads} heads.")
        self.heads = heads
        self.query = nn.Linear(width, attention_width, bias=False)
        self.key = nn.Linear(behavior_width, attention_width, bias=False)
        self.value = nn.Linear(behavior_width, attention_width, bias=False)
        self.output = nn.Linear(attention_width, width, bias=False)

    def forward(self, candidate_BW: Tensor, behavior_BKC: Tensor, mask_BK: Tensor) -> Tensor:
        """Return the attended behaviors (B, W)."""
        query_BHd = self.query(candidate_BW).unflatten(-1, (self.heads, -1))
        key_BKHd = self.key(behavior_BKC).unflatten(-1, (self.heads, -1))
        value_BKHd = self.value(behavior_BKC).unflatten(-1, (self.heads, -1))
        score_BHK = torch.einsum("bhd,bkhd->bhk", query_BHd, key_BKHd) * query_BHd.shape[-1] ** -0.5
        mask_B1K = mask_BK[:, None]
        weight_BHK = score_BHK.masked_fill(~mask_B1K, torch.finfo(score_BHK.dtype).min).softmax(dim=-1) * mask_B1K
        return self.output(torch.einsum("bhk,bkhd->bhd", weight_BHK, value_BKHd).flatten(1))
