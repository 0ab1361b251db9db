"""Learned weights of partitions in the match of the memory, with few parameters: wider heads did worse.

Shape suffixes: B samples in the batch, P partitions, E width of an item's vector.
"""

import torch
from torch import Tensor, nn

from liber_feast.evidence_rows import MEMORY_PRIOR
from liber_feast.fields import NUMBER_LIMIT
from liber_feast.inputs import InputShape

Batch = dict[str, Tensor]


class MatchHead(nn.Module):
    """`s sum_p w_p (W v) . e_p`, w = softmax(log n_p + a (W v) . e_p - r age_p), in the units of the plain match.

    v is the candidate's vector, e_p the evidence of a partition of n_p behaviors, age_p how many came after it; of n
    behaviors in all, s = n / (n + `MEMORY_PRIOR`). One of r (`decay`), a (`attention`) and W (`projected`) is learned;
    a = r = 0 and W = 1, at first, is the mean.
    """

    def __init__(self, shape: InputShape) -> None:
        super().__init__()
        self.choice, self.deviation = shape.match, shape.match_deviation
        start = torch.eye(shape.item_width) if shape.match == "projected" else torch.zeros(())
        self.weight = nn.Parameter(start)

    def forward(self, batch: Batch) -> Tensor:
        """Return the match (B,); 0 without partitions."""
        evidence_BPE, count_BP = batch["partitions"][..., :-1], batch["partitions"][..., -1]
        there_BP = batch["partition_there"]
        vector_BE = batch["item_vector"]
        if self.choice == "projected":
            vector_BE = vector_BE @ self.weight
        match_BP = (evidence_BPE @ vector_BE[..., None]).squeeze(-1) / self.deviation
        score_BP = count_BP
        if self.choice == "attention":
            score_BP = score_BP + self.weight * match_BP
        if self.choice == "decay":
            age_BP = there_BP.flip(1).cumsum(1).flip(1) - 1
            score_BP = score_BP - self.weight * age_BP
        lowest = torch.finfo(score_BP.dtype).min
        weight_BP = score_BP.masked_fill(~there_BP, lowest).softmax(dim=1) * there_BP
        behaviors_B = (count_BP.exp() * there_BP).sum(dim=1)
        smoothed_B = (weight_BP * match_BP).sum(dim=1) * behaviors_B / (behaviors_B + MEMORY_PRIOR)
        return smoothed_B.clamp(-NUMBER_LIMIT, NUMBER_LIMIT)

    def dense(self, batch: Batch) -> Tensor:
        """Return the dense numbers of a batch with this match in the place of the mean, which is the last of them."""
        return torch.cat([batch["dense"][:, :-1], self(batch)[:, None]], dim=1)
