"""The embedding of one side's fields: those of a user or of an item.

Shape suffixes: B samples in the batch, N items, F fields, E embedding width, T code slots, V numbers.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.backbones.rows import sum_rows, take_rows

INITIAL_DEVIATION = 0.05


class FieldEmbedding(nn.Module):
    """Embed the fields of one side: (..., T) codes and (..., V, 2) numbers -> (..., F, E).

    A field of several codes is the mean of those that are there; code 0 and a missing number are the zero vector.
    Fields of one code each that stand together are looked up at once.
    """

    def __init__(self, *, slots: Sequence[int], code_count: int, number_count: int, width: int) -> None:
        super().__init__()
        self.slots = list(slots)
        self._parts = list(_lookups(slots))
        self.codes = nn.Embedding(code_count, width, padding_idx=0)
        self.numbers = nn.Parameter(torch.empty(number_count, 2, width))
        nn.init.normal_(self.codes.weight, std=INITIAL_DEVIATION)
        nn.init.normal_(self.numbers, std=INITIAL_DEVIATION)
        with torch.no_grad():
            self.codes.weight[0] = 0

    @property
    def field_count(self) -> int:
        return len(self.slots) + len(self.numbers)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        fields = [
            self._mean(part)[..., None, :] if several else take_rows(self.codes.weight, part, padding=0)
            for part, (_, several) in zip(
                codes.split([width for width, _ in self._parts], -1), self._parts, strict=True
            )
        ]
        if len(self.numbers):
            fields.append(torch.einsum("...vk,vke->...ve", numbers, self.numbers))
        return torch.cat(fields, dim=-2)

    def pool(self, codes_BNT: Tensor, numbers_BNV2: Tensor) -> Tensor:
        """Return the fields (B, F, E) of N items as one: each is the mean over what is there among them."""
        fields = [self._mean(part.flatten(1))[:, None] for part in codes_BNT.split(self.slots, dim=-1)]
        if len(self.numbers):
            total_BV2 = numbers_BNV2.sum(dim=1)
            mean_BV2 = total_BV2 / total_BV2[..., 1:].clamp(min=1)
            fields.append(torch.einsum("bvk,vke->bve", mean_BV2, self.numbers))
        return torch.cat(fields, dim=1)

    def pool_distinct(self, codes_IT: Tensor, numbers_IV2: Tensor, *, items_IFE: Tensor, places_BN: Tensor) -> Tensor:
        """Return what `pool` does of the items `places_BN` among I, which are embedded as `items_IFE`."""
        counts_IF = torch.stack([(part != 0).sum(dim=-1) for part in codes_IT.split(self.slots, dim=-1)], dim=-1)
        counts_IF = torch.cat([counts_IF, numbers_IV2[..., 1]], dim=-1)
        total_BFE = sum_rows((items_IFE * counts_IF[..., None]).flatten(1), places_BN).unflatten(1, items_IFE.shape[1:])
        return total_BFE / sum_rows(counts_IF, places_BN).clamp(min=1)[..., None]

    def _mean(self, codes: Tensor) -> Tensor:
        """Return (..., E) for (..., slots): the mean over the codes that are there, zeros where none is."""
        flat = F.embedding_bag(codes.flatten(0, -2), self.codes.weight, mode="mean", padding_idx=0)
        return flat.unflatten(0, codes.shape[:-1])


def _lookups(slots: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Yield how many codes are looked up together, and whether they are the several codes of one field."""
    for single, fields in groupby(slots, key=lambda count: count == 1):
        if single:
            yield len(list(fields)), False
        else:
            yield from ((count, True) for count in fields)
