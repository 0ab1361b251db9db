"""Products of every two fields through a matrix of each pair: the heavy part of FiBiNET's bilinear interaction.

Autograd would give each slice of the fields a gradient as large as all of them. On another device, and where a model is
exported or compiled, these are torch's functions.

Shape suffixes: B samples in the batch, F fields, E embedding width, P = F * (F - 1) / 2 pairs, C = E times the pairs of
a left field.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.backbones.by_hand import is_by_hand


def bilinear_pairs(fields_BFE: Tensor, weight_PEE: Tensor) -> Tensor:
    """Return `v_i W_ij * v_j` for every pair i < j, in order, (B, P, E); each matrix is (E in, E out)."""
    if is_by_hand(fields_BFE, weight_PEE):
        pairs_BPE: Tensor = _Pairs.apply(fields_BFE, weight_PEE)
        return pairs_BPE
    return torch.cat(
        [
            (fields_BFE[:, i] @ matrix_EC).unflatten(-1, (-1, fields_BFE.shape[2])) * fields_BFE[:, i + 1 :]
            for i, _, matrix_EC in _by_left_field(weight_PEE, field_count=fields_BFE.shape[1])
        ],
        dim=1,
    )


def _by_left_field(weight_PEE: Tensor, *, field_count: int) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield each left field, where its pairs are, and their matrices side by side, (E, C)."""
    start = 0
    for i in range(field_count - 1):
        pairs = slice(start, start + field_count - 1 - i)
        yield i, pairs, weight_PEE[pairs].transpose(0, 1).flatten(1)
        start = pairs.stop


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fields_BFE: Tensor, weight_PEE: Tensor) -> Tensor:
        mapped, pairs_BPE = [], fields_BFE.new_empty(len(fields_BFE), len(weight_PEE), fields_BFE.shape[2])
        for i, pairs, matrix_EC in _by_left_field(weight_PEE, field_count=fields_BFE.shape[1]):
            mapped.append((fields_BFE[:, i] @ matrix_EC).unflatten(-1, (-1, fields_BFE.shape[2])))
            torch.mul(mapped[i], fields_BFE[:, i + 1 :], out=pairs_BPE[:, pairs])
        ctx.save_for_backward(fields_BFE, weight_PEE, *mapped)
        return pairs_BPE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BPE: Tensor) -> tuple[Tensor, ...]:
        fields_BFE, weight_PEE, *mapped = ctx.saved_tensors
        grad_fields_BFE, grad_weight_PEE = torch.zeros_like(fields_BFE), torch.empty_like(weight_PEE)
        for i, pairs, matrix_EC in _by_left_field(weight_PEE, field_count=fields_BFE.shape[1]):
            grad_fields_BFE[:, i + 1 :].addcmul_(grad_BPE[:, pairs], mapped[i])
            grad_BC = (grad_BPE[:, pairs] * fields_BFE[:, i + 1 :]).flatten(1)
            grad_fields_BFE[:, i].addmm_(grad_BC, matrix_EC.t())
            grad_EC = fields_BFE[:, i].t() @ grad_BC
            grad_weight_PEE[pairs] = grad_EC.unflatten(1, (-1, fields_BFE.shape[2])).transpose(0, 1)
        return grad_fields_BFE, grad_weight_PEE
