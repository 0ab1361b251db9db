"""Rows of a table and sums of its rows, with gradients that are added up in one pass.

Autograd's own take several times as long on a CPU, where steps spend much of their time in lookups. On another device,
and where a model is exported or compiled, these are torch's functions.

Shape suffixes: R rows of the table, E their width, B bags, N rows of a bag.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SORTED_BY_DIGITS = 1 << 16


def take_rows(table_RE: Tensor, places: Tensor, *, padding: int | None = None) -> Tensor:
    """Return `table_RE[places]`, (..., E); the row `padding` gets no gradient."""
    if not _is_ours(table_RE):
        return F.embedding(places, table_RE, padding_idx=padding)
    rows: Tensor = _Rows.apply(table_RE, places.reshape(-1), padding)
    return rows.unflatten(0, places.shape)


def sum_rows(table_RE: Tensor, places_BN: Tensor) -> Tensor:
    """Return the sums (B, E) of the rows of each bag."""
    if not _is_ours(table_RE):
        return F.embedding_bag(places_BN, table_RE, mode="sum")
    sums_BE: Tensor = _Sums.apply(table_RE, places_BN)
    return sums_BE


def _is_ours(table: Tensor) -> bool:
    learns = torch.is_grad_enabled() and table.requires_grad
    return learns and table.device.type == "cpu" and not torch.compiler.is_compiling()


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_RE: Tensor, places_M: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(places_M)
        ctx.count, ctx.padding = len(table_RE), padding
        return table_RE.index_select(0, places_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ME: Tensor) -> tuple[Tensor | None, ...]:
        (places_M,) = ctx.saved_tensors
        if len(places_M) > ctx.count:
            order_M, starts_R = grouped(places_M, count=ctx.count)
            grad_RE = F.embedding_bag(order_M, grad_ME, starts_R, mode="sum")
        else:
            grad_RE = grad_ME.new_zeros(ctx.count, grad_ME.shape[1]).index_add_(0, places_M, grad_ME)
        if ctx.padding is not None:
            grad_RE[ctx.padding] = 0
        return grad_RE, None, None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_RE: Tensor, places_BN: Tensor) -> Tensor:
        ctx.save_for_backward(places_BN)
        ctx.count = len(table_RE)
        return F.embedding_bag(places_BN, table_RE, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BE: Tensor) -> tuple[Tensor | None, ...]:
        (places_BN,) = ctx.saved_tensors
        order_M, starts_R = grouped(places_BN.flatten(), count=ctx.count)
        bags_M = order_M.div_(places_BN.shape[1], rounding_mode="floor")
        return F.embedding_bag(bags_M, grad_BE, starts_R, mode="sum"), None


def grouped(places_M: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Return the positions of all places ordered by place, and where those of each of the `count` rows start."""
    places = places_M.numpy()
    if count <= SORTED_BY_DIGITS:
        places = places.astype(np.uint16)  # of these NumPy sorts digits, in a tenth of the time
    counts_R = torch.bincount(places_M, minlength=count)
    return torch.from_numpy(places.argsort(kind="stable")), counts_R.cumsum(dim=0) - counts_R
